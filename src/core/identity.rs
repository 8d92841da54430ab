//! Who this node is to the control plane.

use std::fmt;

use crate::types::{NodeId, Secret};

/// Identity of this node: the content of `node.json`.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Assigned by the control plane when the node registered.
    pub node_id: NodeId,
    /// The node's own token, if the control plane issues one.
    pub node_token: Option<Secret>,
    /// Key of the hashes that specifications are compared by. `None` only in a file that was written by hand: the
    /// agent then makes a key and saves the identity again.
    pub spec_key: Option<[u8; 32]>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node_id)
    }
}
