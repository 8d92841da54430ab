//! How busy the GPUs inside microVMs are: the host cannot see it, so the containers are asked, where the setting
//! allows that. An answer is used for a while; what does not answer is not known.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::job::{Job, Vendor};
use super::replica::Phase;
use super::{Action, Core, Purpose};
use crate::types::{ContainerId, ReplicaId};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(90);
/// AMD's PCI vendor ID.
const AMD: u16 = 0x1002;

/// The answers: when, and the percents of a replica's GPUs.
pub(super) type Guests = BTreeMap<ReplicaId, (Instant, Vec<u8>)>;

impl Core {
    /// Asks each running replica that has GPUs, if that is allowed.
    pub(super) fn ask_guests(&mut self, out: &mut Vec<Action>) {
        if !self.limits.ask_guests {
            return;
        }
        let asked = |replica: &ReplicaId| {
            self.jobs.values().any(|purpose| matches!(purpose, Purpose::Guest(of) if of == replica))
        };
        let ask: Vec<(ReplicaId, ContainerId, Vendor)> = self
            .replicas
            .values()
            .filter_map(|replica| match &replica.phase {
                Phase::Running(container, _) if !replica.gpus.is_empty() && !asked(&replica.id) => {
                    let vendor = match replica.gpus.first().and_then(|gpu| self.gpus.vendor(*gpu)) {
                        Some(AMD) => Vendor::Amd,
                        Some(_) | None => Vendor::Nvidia,
                    };
                    Some((replica.id.clone(), container.clone(), vendor))
                }
                _ => None,
            })
            .collect();
        for (replica, container, vendor) in ask {
            self.submit(Job::GuestUse(container, vendor), Purpose::Guest(replica), out);
        }
    }

    /// A container answered.
    pub(super) fn guest_answer(&mut self, now: Instant, replica: ReplicaId, percents: Option<Vec<u8>>) {
        match percents.filter(|percents| !percents.is_empty()) {
            Some(percents) => _ = self.guests.insert(replica, (now, percents)),
            None => _ = self.guests.remove(&replica),
        }
        let replicas = &self.replicas;
        self.guests.retain(|replica, (at, _)| replicas.contains_key(replica) && *at + FRESH > now);
    }

    /// The mean use of all GPUs that can be read, in percent, and who said so.
    pub(super) fn gpu_utilization(&self, now: Instant) -> (Option<u8>, Option<&'static str>) {
        let host = self.node.host_utilization();
        let runs =
            |id: &ReplicaId| self.replicas.get(id).is_some_and(|r| matches!(r.phase, Phase::Running(..)));
        let counts = self.guests.iter().filter(|(id, (at, _))| *at + FRESH > now && runs(id));
        let guests: Vec<u64> =
            counts.flat_map(|(_, (_, percents))| percents).map(|p| u64::from(*p)).collect();
        let mean = |all: &[u64]| u8::try_from(all.iter().sum::<u64>() / all.len().max(1) as u64).ok();
        match (host, guests.is_empty()) {
            (None, true) => (None, None),
            (Some(host), true) => (Some(host), Some("host")),
            (None, false) => (mean(&guests), Some("guests")),
            // The host's number is a mean of its own: it counts as one GPU more.
            (Some(host), false) => {
                let all: Vec<u64> = guests.into_iter().chain([u64::from(host)]).collect();
                (mean(&all), Some("host and guests"))
            }
        }
    }
}
