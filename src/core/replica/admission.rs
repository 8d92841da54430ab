//! What is taken on: commands that wait for the containers to be known, and the bounds past which deploys are refused.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::outcome::{Code, Refusal};
use super::state::Stop;
use super::{REQUESTS_MAX, STOP_TIMEOUT, default_deploy_timeout};
use crate::core::results::OWED_MAX;
use crate::core::timers::Timer;
use crate::protocol::Inbound;

/// Maximum number of commands that wait for the containers to be known.
const WAITING_MAX: usize = 1024;
/// Maximum size of the variables and arguments in deploys that wait, in bytes.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Commands that wait for the containers to be known.
#[derive(Debug, Default)]
pub(crate) struct WaitingCommands {
    /// With the time until which each waits.
    commands: VecDeque<(Instant, Inbound)>,
    bytes: usize,
}

impl WaitingCommands {
    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Keeps a command. Gives it back with the reason when too much waits already.
    pub(crate) fn push(&mut self, now: Instant, command: Inbound) -> Result<(), (Inbound, Refusal)> {
        // Same as the last waiting command for this replica: a redelivery. After a different one it counts as new.
        let of_replica = |waiting: &&(Instant, Inbound)| waiting.1.replica() == command.replica();
        if self.commands.iter().rev().find(of_replica).is_some_and(|(_, waiting)| *waiting == command) {
            return Ok(());
        }
        let Some(timeout) = timeout(&command) else { return Ok(()) };
        let bytes = self.bytes + command.bytes();
        if self.commands.len() >= WAITING_MAX || bytes > WAITING_BYTES_MAX {
            let why = "too many commands wait for the node to know its containers";
            return Err((command, Refusal::new(Code::Busy, why)));
        }
        self.bytes = bytes;
        self.commands.push_back((now + timeout, command));
        Ok(())
    }

    /// The containers are known, or the agent ends: nothing waits any more.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Inbound> + use<> {
        self.bytes = 0;
        std::mem::take(&mut self.commands).into_iter().map(|(_, command)| command)
    }

    /// Those that have waited for too long, in order.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Inbound> {
        let (expired, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.commands).into_iter().partition(|(until, _)| *until <= now);
        self.commands = kept;
        let expired: Vec<Inbound> = expired.into_iter().map(|(_, command)| command).collect();
        self.bytes -= expired.iter().map(Inbound::bytes).sum::<usize>();
        expired
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 1] {
        [(Timer::WaitingCommand, self.commands.iter().map(|(until, _)| *until).min())]
    }
}

/// How long a command waits at most; `None` for commands that never wait.
fn timeout(command: &Inbound) -> Option<Duration> {
    match command {
        Inbound::Deploy(deploy) => {
            let usual = default_deploy_timeout(deploy.spec.gpu_count > 0);
            Some(deploy.deploy_timeout.unwrap_or(usual))
        }
        Inbound::Stop(stop) => Some(Stop::total_timeout(stop.timeout.unwrap_or(STOP_TIMEOUT))),
        Inbound::Registered { .. }
        | Inbound::Drain
        | Inbound::Maintenance
        | Inbound::Resume
        | Inbound::Logs { .. } => None,
    }
}

/// How much is taken on already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) takes_deploys: bool,
    /// Deploys that wait in the queue, or for a registry.
    pub(crate) queued: usize,
    pub(crate) queue_limit: usize,
    /// Size of the variables and arguments in deploys that are queued.
    pub(crate) queued_bytes: usize,
    /// Results that are kept, and outcomes that are still to come.
    pub(crate) owed: usize,
}

impl Load {
    /// Why no new deploy is taken.
    pub(crate) fn refuses_deploy(&self) -> Option<Refusal> {
        if !self.takes_deploys {
            let why = "the node is draining or in maintenance: it takes no deploys";
            return Some(Refusal::new(Code::Draining, why));
        }
        if self.queued >= self.queue_limit {
            let why = format!("{} deploys are waiting or pulling images already", self.queue_limit);
            return Some(Refusal::new(Code::Busy, why));
        }
        if self.queued_bytes > WAITING_BYTES_MAX {
            let why = "the deploys that are waiting already are too large together";
            return Some(Refusal::new(Code::Busy, why));
        }
        self.refuses_result()
    }

    /// Why no further request may wait for the outcome of a deploy that `waiting` ones wait for.
    pub(crate) fn refuses_join(&self, waiting: usize) -> Option<Refusal> {
        if waiting >= REQUESTS_MAX {
            return Some(Refusal::too_many_requests());
        }
        self.refuses_result()
    }

    /// Why no further result can be promised.
    pub(crate) fn refuses_result(&self) -> Option<Refusal> {
        let why = "too many results are not known to have arrived: ask again later";
        (self.owed >= OWED_MAX).then(|| Refusal::new(Code::Busy, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cx::Cx;
    use crate::protocol;
    use crate::types::ReplicaId;

    fn stop(id: &str, timeout: Duration) -> Inbound {
        let replica = ReplicaId::new(id).unwrap();
        Inbound::Stop(protocol::Stop { replica, request: None, timeout: Some(timeout) })
    }

    #[test]
    fn commands_wait_in_order_and_each_for_its_own_time() {
        let now = Cx::example().now;
        let second = Duration::from_secs(1);
        let mut waiting = WaitingCommands::default();
        for command in [stop("a", 9 * second), stop("b", second), stop("a", 9 * second)] {
            assert!(waiting.push(now, command).is_ok());
        }
        assert_eq!(waiting.len(), 2, "the third is the first, delivered again");
        let next = waiting.timers()[0].1.unwrap();
        assert_eq!(next, now + Stop::total_timeout(second));
        assert_eq!(waiting.take_expired(next), [stop("b", second)]);
        assert_eq!(waiting.take_all().collect::<Vec<_>>(), [stop("a", 9 * second)]);
    }

    #[test]
    fn past_its_bound_a_command_is_given_back() {
        let now = Cx::example().now;
        let mut waiting = WaitingCommands::default();
        for n in 0..WAITING_MAX {
            assert!(waiting.push(now, stop(&format!("r{n}"), Duration::ZERO)).is_ok());
        }
        let (_, refusal) = waiting.push(now, stop("r", Duration::ZERO)).unwrap_err();
        assert_eq!(refusal.code, Code::Busy);
        let mut waiting = WaitingCommands { bytes: WAITING_BYTES_MAX + 1, ..WaitingCommands::default() };
        assert!(waiting.push(now, stop("r", Duration::ZERO)).is_err(), "they are too large together");
    }

    #[test]
    fn the_first_bound_that_is_reached_is_named() {
        let load =
            Load { takes_deploys: true, queued: 0, queue_limit: 4, queued_bytes: 0, owed: OWED_MAX - 1 };
        let code = |load: Load| load.refuses_deploy().map(|refusal| refusal.code);
        assert_eq!(code(load), None);
        assert_eq!(code(Load { owed: OWED_MAX, ..load }), Some(Code::Busy));
        assert_eq!(code(Load { queued: 4, ..load }), Some(Code::Busy));
        assert_eq!(code(Load { queued_bytes: WAITING_BYTES_MAX, ..load }), None);
        assert_eq!(code(Load { queued_bytes: WAITING_BYTES_MAX + 1, ..load }), Some(Code::Busy));
        assert!(load.refuses_join(REQUESTS_MAX - 1).is_none() && load.refuses_join(REQUESTS_MAX).is_some());
        assert_eq!(code(Load { queued: 4, takes_deploys: false, ..load }), Some(Code::Draining));
        assert!(Load { queued: 4, ..load }.refuses_result().is_none());
    }
}
