//! What of a deploy does not reach its container as it was asked for, in sentences for `deploy_result`.

use crate::types::Spec;

/// How many variables one sentence names.
const NAMED_MAX: usize = 8;

/// What a microVM of Kata's does not do for `spec`. Its agent trims the values of variables (`valid_env` in `rustjail`);
/// both of its runtimes clear the limit of processes. A plain runtime does all of it.
pub(crate) fn warnings(spec: &Spec, microvm: bool) -> Vec<String> {
    if !microvm {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    let trimmed: Vec<&str> = spec
        .env
        .iter()
        .filter(|(_, value)| value.expose().trim() != value.expose())
        .map(|(name, _)| name.as_str())
        .collect();
    if !trimmed.is_empty() {
        let more = match trimmed.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = trimmed.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
        warnings.push(format!(
            "Kata drops the white space at both ends of a variable's value; that changes {named}{more}"
        ));
    }
    if spec.pids_limit.is_some() {
        warnings.push("pids_limit has no effect with Kata, which removes the limit".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EnvName, ImageRef, Secret};

    #[test]
    fn what_kata_changes_is_named_without_values() {
        let mut spec = Spec::new(ImageRef::new("img:a").unwrap());
        assert_eq!(warnings(&spec, true), [""; 0]);
        let values = ["a b", " hunter2", "hunter2\n", "", "\u{2003}x", "two\nlines"];
        let env = |(n, value): (usize, &&str)| {
            (EnvName::new(&format!("V{n}")).unwrap(), Secret::new((*value).to_owned()))
        };
        spec.env = values.iter().enumerate().map(env).collect();
        spec.pids_limit = Some(9);
        let told = warnings(&spec, true);
        assert!(told[0].ends_with("that changes V1, V2, V4"), "{told:?}");
        assert!(told[1].starts_with("pids_limit has no"));
        assert_eq!((told.len(), told.concat().contains("hunter2")), (2, false));
        assert_eq!(warnings(&spec, false), [""; 0]);
        spec.env = [" x"; 10].iter().enumerate().map(env).collect();
        assert!(warnings(&spec, true)[0].ends_with("V6, V7 and 2 more"));
    }
}
