//! Which GPUs a claim gets: whole IOMMU groups, on as few NUMA nodes as possible, then by address. Pure arithmetic.

use std::collections::BTreeMap;

use crate::types::PciAddress;

/// The GPUs of one free IOMMU group, by address.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) gpus: Vec<PciAddress>,
    pub(super) numa: Option<u32>,
}

/// Chooses whole groups with exactly `count` GPUs in all: from one NUMA node where that is possible (the one that is
/// left with the fewest free), else from the nodes with the most free first.
pub(super) fn choose(groups: &[Group], count: usize) -> Option<Vec<PciAddress>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let mut nodes: BTreeMap<Option<u32>, Vec<&Group>> = BTreeMap::new();
    for group in groups {
        nodes.entry(group.numa).or_default().push(group);
    }
    let size = |node: &[&Group]| node.iter().map(|group| group.gpus.len()).sum::<usize>();
    let mut by_size: Vec<Vec<&Group>> = nodes.into_values().collect();
    by_size.sort_by_key(|node| size(node));
    if let Some(chosen) = by_size.iter().find_map(|node| exactly(node, count)) {
        return Some(chosen);
    }
    // Fill up from the largest nodes: the first prefix of nodes that holds an exact sum uses the fewest of them.
    by_size.sort_by_key(|node| std::cmp::Reverse(size(node)));
    let mut all: Vec<&Group> = Vec::new();
    for node in by_size {
        all.extend(node);
        if let Some(chosen) = exactly(&all, count) {
            return Some(chosen);
        }
    }
    None
}

/// The first groups, in order, whose sizes add up to exactly `count`.
fn exactly(groups: &[&Group], count: usize) -> Option<Vec<PciAddress>> {
    // last[n]: the group that completes a sum of n, found by the groups before it (subset sum, count ≤ 64).
    let mut last: Vec<Option<usize>> = vec![None; count + 1];
    for (at, group) in groups.iter().enumerate() {
        for sum in (group.gpus.len()..=count).rev() {
            let rest = sum - group.gpus.len();
            let reachable = rest == 0 || last[rest].is_some_and(|before| before < at);
            if last[sum].is_none() && reachable {
                last[sum] = Some(at);
            }
        }
    }
    let mut chosen = Vec::new();
    let mut sum = count;
    while sum > 0 {
        let group = groups[last[sum]?];
        chosen.extend(group.gpus.iter().copied());
        sum -= group.gpus.len();
    }
    chosen.sort();
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(buses: &[u8], numa: u32) -> Group {
        let address = |bus: &u8| PciAddress { domain: 0, bus: *bus, device: 0, function: 0 };
        Group { gpus: buses.iter().map(address).collect(), numa: Some(numa) }
    }

    #[test]
    fn a_sum_is_exact_or_there_is_none() {
        let pairs = [group(&[1, 2], 0), group(&[3, 4], 0), group(&[5], 1)];
        let chosen =
            |count| choose(&pairs, count).map(|all| all.iter().map(|gpu| gpu.bus).collect::<Vec<_>>());
        assert_eq!(chosen(0), Some(vec![]));
        assert_eq!(chosen(1), Some(vec![5]));
        assert_eq!(chosen(2), Some(vec![1, 2]));
        assert_eq!(chosen(3), Some(vec![1, 2, 5]));
        assert_eq!(chosen(5), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(chosen(6), None);
        assert_eq!(choose(&pairs[..2], 3), None, "no group is split");
    }
}
