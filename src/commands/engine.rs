//! The replicas' containers, as the engine lists them: for commands that must work while the agent is stopped too.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::job::gpus_of_label;
use crate::engine::cli::{self, Cli};
use crate::link::dates;
use crate::process::{self, Ended};
use crate::types::ContainerId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) id: ContainerId,
    pub(super) replica: String,
    pub(super) deploy: String,
    /// PCI addresses.
    pub(super) gpus: Vec<String>,
    pub(super) image: String,
    /// Seconds since 1970.
    pub(super) created: Option<u64>,
    /// The engine's words: `Up 2 hours`.
    pub(super) status: String,
}

/// Lists the containers, newest first.
pub(super) fn containers(cli: &Cli) -> Result<Vec<Container>, String> {
    let (program, bounds) = cli.describe();
    let failed = |why: &str| format!("cannot list the containers with {}: {why}", program.path.display());
    let finished = process::run(&program, &bounds, None).map_err(|error| failed(&error.to_string()))?;
    match finished.ended {
        Ended::Exit(0) => {}
        Ended::Deadline => return Err(failed("the container engine does not answer")),
        Ended::Exit(_) | Ended::Signal(_) | Ended::Cancelled | Ended::Stalled => {
            let text = String::from_utf8_lossy(&finished.stderr);
            return Err(failed(text.lines().last().unwrap_or("it failed without a message")));
        }
    }
    let text = String::from_utf8_lossy(&finished.stdout);
    let mut all: Vec<Container> = text.lines().filter_map(parse).collect();
    all.sort_by_key(|container| std::cmp::Reverse(container.created));
    Ok(all)
}

/// A line of [`Cli::describe`]; `None` for one that another program printed.
fn parse(line: &str) -> Option<Container> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [id, replica, deploy, gpus, named, image, created, status] = fields.as_slice() else { return None };
    let text = |json: &str| serde_json::from_str::<String>(json).ok();
    let label = |json: &str| text(json).filter(|label| !cli::is_nothing(label)).unwrap_or_default();
    let gpus = label(gpus);
    // One that was started before the label was written has the engine's name alone.
    let named = Some(label(named)).filter(|named| !named.is_empty());
    Some(Container {
        id: ContainerId::new(&text(id)?).ok()?,
        replica: text(replica)?,
        deploy: label(deploy),
        gpus: gpus_of_label(&gpus).map(str::to_owned).collect(),
        image: named.or_else(|| text(image))?,
        created: dates::seconds(&text(created)?),
        status: text(status)?,
    })
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `45 s`, `12 min`, `3 h 5 min`, `2 d 4 h`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min"),
        () => format!("{seconds} s"),
    }
}

/// Columns as wide as their widest cell; the last one is not filled up.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_nerdctl_and_docker() {
        let id = "0123456789abcdef".repeat(4);
        let line = |gpus: &str, named: &str, created: &str| {
            format!(
                "\"{id}\"\t\"web-1\"\t\"d1\"\t\"{gpus}\"\t\"{named}\"\t\"sha256:ab\"\t\"{created}\"\t\"Up\""
            )
        };
        for created in ["2026-11-24T05:51:50.1Z", "2026-11-24 05:51:50 +0000 UTC"] {
            let container = parse(&line("-", "nginx:1", created)).unwrap();
            assert_eq!((container.replica.as_str(), container.gpus.len()), ("web-1", 0));
            assert_eq!((container.image.as_str(), container.created), ("nginx:1", Some(1_795_499_510)));
            let before = parse(&line("none", "", created)).unwrap();
            assert_eq!((before.image.as_str(), before.gpus.len()), ("sha256:ab", 0));
            let pair = parse(&line("0000:41:00.0+0000:43:00.0", "nginx:1", created)).unwrap();
            assert_eq!(pair.gpus, ["0000:41:00.0", "0000:43:00.0"]);
        }
        for other in ["", "time=\"x\" level=warning", "\"short\"\t\"\"\t\"\"\t\"\"\t\"\"\t\"\"\t\"\"\t\"\""] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn spans_of_time() {
        let check = |seconds, expected: &str| assert_eq!(span(seconds), expected);
        check(0, "0 s");
        check(59, "59 s");
        check(60, "1 min");
        check(3 * 3600 + 300, "3 h 5 min");
        check(2 * 86_400 + 4 * 3600, "2 d 4 h");
    }
}
