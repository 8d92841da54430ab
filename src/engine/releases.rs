//! What is known of nerdctl's releases: holes that a later one mends, and who fetches an image. Pure.

use super::cli::Flavour;

/// From this one on an image's labels are copied onto its container.
const COPIES_LABELS_SINCE: Version = (2, 0, 0);
/// From this one on without containerd's own (its library leaves out `containerd.io/` since 2.3.2), which had its
/// restart monitor run programs as root.
const SPARES_CONTAINERD_SINCE: Version = (2, 3, 3);

/// From this one on containerd fetches images, where it is of 2.0 or newer (`EnsureImage` in its `pkg/imgutil`).
const PULLS_BY_TRANSFER_SINCE: Version = (2, 3, 0);

/// Major, minor and patch.
type Version = (u32, u32, u32);

/// What is known to be wrong with the release of a CLI that says this of its version, and which one mends it.
pub fn known_hole(flavour: Flavour, said: Option<&str>) -> Option<String> {
    let said = said.filter(|_| flavour == Flavour::Nerdctl).and_then(number)?;
    let hit = (COPIES_LABELS_SINCE..SPARES_CONTAINERD_SINCE).contains(&version(said)?);
    let hole = "lets an image's labels have containerd run programs on the host as root";
    hit.then(|| format!("nerdctl {said} {hole}: such images are refused; update to 2.3.3 or newer"))
}

/// Whether the release that says this of its version may leave the fetching of images to containerd.
pub fn pulls_by_transfer(said: &str) -> bool {
    number(said).and_then(version).is_some_and(|version| version >= PULLS_BY_TRANSFER_SINCE)
}

/// The number in `nerdctl version 2.2.2`.
fn number(said: &str) -> Option<&str> {
    said.strip_prefix("nerdctl version ")?.split_whitespace().next()
}

/// `v2.3.0-beta.1` is taken for 2.3.0, and 2.1 for 2.1.0.
fn version(number: &str) -> Option<Version> {
    let plain = number.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let mut parts = plain.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_with_a_known_hole() {
        let check = |flavour, said: &str, hit: bool| {
            let hole = known_hole(flavour, Some(&format!("nerdctl version {said}\n")));
            assert_eq!(hole.is_some(), hit, "{said}");
            assert!(hole.is_none_or(|text| text.contains(said) && text.contains("2.3.3")), "{said}");
        };
        for said in ["2.0.0", "2.0.5", "v2.1.6", "2.2.2", "2.3.0-beta.0", "2.3.2"] {
            check(Flavour::Nerdctl, said, true);
            check(Flavour::Docker, said, false);
        }
        for said in ["1.7.7", "0.8", "2.3.3", "2.3.5", "2.10.0", "3.0.0", "<unknown>", "2", "2.x"] {
            check(Flavour::Nerdctl, said, false);
        }
        assert_eq!(known_hole(Flavour::Nerdctl, None), None);
    }

    #[test]
    fn who_fetches() {
        let check = |said: &str, by_transfer| assert_eq!(pulls_by_transfer(said), by_transfer, "{said}");
        check("nerdctl version 2.2.2\n", false);
        check("nerdctl version 1.7.7\n", false);
        check("nerdctl version 2.3.0-beta.0\n", true);
        check("nerdctl version 2.3.5\n", true);
        check("nerdctl version 3.0.0\n", true);
        check("", false);
    }
}
