//! Reading containers' logs for the control plane, a few at a time.

use serde_json::Map;

use super::cx::{Cx, JobOwner};
use super::job::{Failure, FailureKind, Job};
use crate::types::{ContainerId, ReplicaId, RequestId};

/// Maximum number of logs that are read at once.
const LOGS_MAX: usize = 16;

/// The requests for logs that are under way.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    under_way: usize,
}

impl Logs {
    /// Logs were asked for: reads them, or answers why not. `container`: the replica's, or why it has none to read from.
    pub(crate) fn read(
        &mut self,
        cx: &mut Cx,
        replica: ReplicaId,
        request: Option<RequestId>,
        tail: u32,
        container: Result<ContainerId, &'static str>,
    ) {
        let failed = |kind, message: String| Err(Failure { kind, message });
        let answer = match container {
            Ok(_) if self.under_way >= LOGS_MAX => failed(
                FailureKind::Refused,
                format!("{LOGS_MAX} logs are being read already: ask again later"),
            ),
            Ok(container) => {
                self.under_way += 1;
                cx.start_job(Job::Logs(container, tail), JobOwner::Logs { replica, request });
                return;
            }
            Err(why) => failed(FailureKind::NoSuchContainer, why.to_owned()),
        };
        send(cx, &replica, request.as_ref(), answer);
    }

    /// A reading came back; `None`: with an outcome of another kind.
    pub(crate) fn on_outcome(
        &mut self,
        cx: &mut Cx,
        replica: &ReplicaId,
        request: Option<&RequestId>,
        result: Option<Result<(Vec<String>, bool), Failure>>,
    ) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(result) = result {
            send(cx, replica, request, result);
        }
    }
}

fn send(
    cx: &mut Cx,
    replica: &ReplicaId,
    request: Option<&RequestId>,
    result: Result<(Vec<String>, bool), Failure>,
) {
    let mut payload = Map::new();
    payload.insert("replica_id".into(), replica.as_str().into());
    let (lines, truncated) = result.unwrap_or_else(|failure| {
        payload.insert("error".into(), failure.message.into());
        (Vec::new(), false)
    });
    payload.insert("lines".into(), lines.into());
    payload.insert("truncated".into(), truncated.into());
    if let Some(request) = request {
        payload.insert("request_id".into(), request.as_str().into());
    }
    cx.send("logs", payload.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_read_at_once_than_the_bound_and_one_that_ends_makes_room() {
        let mut cx = Cx::example();
        let (id, container) = (ReplicaId::new("r").unwrap(), ContainerId::new(&"a".repeat(64)).unwrap());
        let mut logs = Logs::default();
        for _ in 0..LOGS_MAX + 5 {
            logs.read(&mut cx, id.clone(), None, 10, Ok(container.clone()));
        }
        assert_eq!(cx.actions.len(), LOGS_MAX);
        logs.on_outcome(&mut cx, &id, None, Some(Ok((Vec::new(), false))));
        logs.read(&mut cx, id, None, 10, Ok(container));
        assert_eq!(cx.actions.len(), LOGS_MAX + 1);
    }
}
