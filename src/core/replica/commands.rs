//! What a command means, by the class of the replica's state: the protocol's table, as pure functions.

/// What the command tables tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandClass {
    /// None, or gone.
    Absent,
    /// Queued, pulling, starting.
    Coming,
    Running,
    /// Stopping, or being removed; with a deploy that waits behind, or without.
    Leaving {
        successor: bool,
    },
    Exited,
}

/// What a `deploy` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDeploy {
    Start,
    /// It gets the outcome of the one under way.
    Join,
    /// It runs: say so.
    Running,
    /// It exists with another specification: refuse.
    Conflict,
    /// It starts when what is leaving is gone.
    After,
    /// It gets the outcome of the one that waits.
    JoinSuccessor,
    /// Remove what ended, then start.
    Replace,
}

/// What a `deploy` means in `class`; `same`: as the one under way or running; `same_next`: as the one that waits.
pub(crate) fn on_deploy(class: CommandClass, same: bool, same_next: bool) -> OnDeploy {
    match class {
        CommandClass::Absent => OnDeploy::Start,
        CommandClass::Coming if same => OnDeploy::Join,
        CommandClass::Running if same => OnDeploy::Running,
        CommandClass::Coming | CommandClass::Running => OnDeploy::Conflict,
        CommandClass::Leaving { successor: false } => OnDeploy::After,
        CommandClass::Leaving { successor: true } if same_next => OnDeploy::JoinSuccessor,
        CommandClass::Leaving { successor: true } => OnDeploy::Conflict,
        CommandClass::Exited => OnDeploy::Replace,
    }
}

/// What a `stop` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnStop {
    /// There is nothing: say so.
    Gone,
    /// End what is coming.
    Cancel,
    /// Stop what runs.
    Stop,
    /// It gets the outcome of what is leaving; a deploy that waits behind it is cancelled.
    Join,
    /// Remove what ended.
    Remove,
}

/// What a `stop` means in `class`.
pub(crate) fn on_stop(class: CommandClass) -> OnStop {
    match class {
        CommandClass::Absent => OnStop::Gone,
        CommandClass::Coming => OnStop::Cancel,
        CommandClass::Running => OnStop::Stop,
        CommandClass::Leaving { .. } => OnStop::Join,
        CommandClass::Exited => OnStop::Remove,
    }
}

/// Whether two hashes stand for the same specification. A hash is `<key>.<hash>`: one made with another key, or none,
/// says nothing, and counts as the same.
pub(crate) fn same_spec(one: &str, other: &str) -> bool {
    match (one.split_once('.'), other.split_once('.')) {
        (Some((key, hash)), Some((other_key, other_hash))) => key != other_key || hash == other_hash,
        (None, _) | (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_protocol() {
        let leaving = CommandClass::Leaving { successor: false };
        let waiting = CommandClass::Leaving { successor: true };
        let check = |class, same, other, stop| {
            assert_eq!(on_deploy(class, true, true), same, "{class:?}, same specification");
            assert_eq!(on_deploy(class, false, false), other, "{class:?}, other specification");
            assert_eq!(on_stop(class), stop, "{class:?}, stop");
        };
        check(CommandClass::Absent, OnDeploy::Start, OnDeploy::Start, OnStop::Gone);
        check(CommandClass::Coming, OnDeploy::Join, OnDeploy::Conflict, OnStop::Cancel);
        check(CommandClass::Running, OnDeploy::Running, OnDeploy::Conflict, OnStop::Stop);
        check(leaving, OnDeploy::After, OnDeploy::After, OnStop::Join);
        check(waiting, OnDeploy::JoinSuccessor, OnDeploy::Conflict, OnStop::Join);
        check(CommandClass::Exited, OnDeploy::Replace, OnDeploy::Replace, OnStop::Remove);
    }

    #[test]
    fn a_hash_with_an_unknown_key_counts_as_the_same() {
        assert!(same_spec("k.1", "k.1"));
        assert!(!same_spec("k.1", "k.2"));
        assert!(same_spec("k.1", "l.2"));
        assert!(same_spec("", "k.2"));
        assert!(same_spec("k.1", "plain"));
    }
}
