//! A complete listing of the containers, sorted by replica, with the GPUs that its labels name.

use std::collections::{BTreeMap, BTreeSet};

use super::cx::Cx;
use super::gpus::GpuTable;
use super::job::{Listed, ListedStatus};
use super::leftover_calls::LeftoverCalls;
use super::replica::{Replica, Replicas, Shown};
use crate::types::{PciAddress, ReplicaId};

/// A listing of the containers, sorted by replica.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The tick at which it was asked for.
    began: u64,
    /// It is the first of this process.
    first: bool,
    containers: BTreeMap<ReplicaId, Vec<Listed>>,
    /// Whose containers, and calls of an earlier process, carry which GPUs in their labels.
    labelled: BTreeMap<ReplicaId, BTreeSet<PciAddress>>,
}

impl Listing {
    pub(crate) fn new(
        cx: &mut Cx,
        began: u64,
        first: bool,
        listed: Vec<Listed>,
        leftovers: &LeftoverCalls,
    ) -> Self {
        let mut containers: BTreeMap<ReplicaId, Vec<Listed>> = BTreeMap::new();
        for container in listed {
            match ReplicaId::new(&container.replica) {
                Ok(id) => containers.entry(id).or_default().push(container),
                Err(invalid) => cx.warn(format!(
                    "container {} has our label, but its {invalid}: ignored",
                    container.id.short()
                )),
            }
        }
        let mut labelled: BTreeMap<ReplicaId, BTreeSet<PciAddress>> = BTreeMap::new();
        for (id, containers) in &containers {
            let gpus = containers.iter().flat_map(|container| container.gpus.iter().copied());
            labelled.entry(id.clone()).or_default().extend(gpus);
        }
        for call in leftovers.calls() {
            labelled.entry(call.replica.clone()).or_default().extend(call.gpus.iter().copied());
        }
        Self { began, first, containers, labelled }
    }

    /// What it shows of a replica.
    pub(crate) fn shown(&self, replica: &Replica, leftovers: &LeftoverCalls) -> Shown<'_> {
        Shown {
            began: self.began,
            first: self.first,
            containers: self.containers.get(replica.id()).map_or(&[], Vec::as_slice),
            leftover_call: leftovers.is_at_work_on(replica.id()),
            successor_call: replica.successor_id().is_some_and(|next| leftovers.is_for_deploy(next)),
        }
    }

    /// The replicas that have a container or a call, with the GPUs in their labels.
    pub(crate) fn labelled(&self) -> impl Iterator<Item = (&ReplicaId, &BTreeSet<PciAddress>)> {
        self.labelled.iter()
    }

    /// The replicas of which no container has a task: a reboot has ended what they ran.
    pub(crate) fn without_task(&self) -> BTreeSet<ReplicaId> {
        let ended = |containers: &[Listed]| containers.iter().all(|c| c.status == ListedStatus::Created);
        self.containers.iter().filter(|(_, all)| ended(all)).map(|(id, _)| id.clone()).collect()
    }

    /// GPUs whose holder is another than the label of a container says: the label is right, for the record of an earlier
    /// process may be older. With the holder and the one that the label names.
    pub(crate) fn misheld(&self, table: &GpuTable, replicas: &Replicas) -> Vec<Misheld> {
        let mut misheld: BTreeMap<PciAddress, Misheld> = BTreeMap::new();
        for (id, gpus) in &self.labelled {
            for gpu in gpus {
                let Some(holder) = table.holder(*gpu).filter(|holder| *holder != id) else { continue };
                let Some(replica) = replicas.get(holder) else { continue };
                // One that this process claimed is not in any label yet.
                let claimed = replica.deploy().is_some_and(|deploy| deploy.work.is_some());
                let carries = self.labelled.get(holder).is_some_and(|gpus| gpus.contains(gpu));
                if !claimed && !carries {
                    let (gpu, holder, owner) = (*gpu, holder.clone(), id.clone());
                    misheld.entry(gpu).or_insert(Misheld { gpu, holder, owner });
                }
            }
        }
        misheld.into_values().collect()
    }
}

/// A GPU whose holder is another than its owner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misheld {
    pub(crate) gpu: PciAddress,
    pub(crate) holder: ReplicaId,
    pub(crate) owner: ReplicaId,
}
