//! `vectorlay-agent report`: all that somebody who is asked for help needs to know, in one text. Secrets are masked where
//! each part is made; no part shows the variables or the output of a container.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::OFlags;

/// Lines of the kernel's log that are shown.
const KERNEL_LINES: usize = 200;
/// Bytes read of the kernel's log: its usual size.
const KERNEL_BYTES: usize = 1024 * 1024;
/// What makes a line of the kernel's log worth showing.
const KERNEL_WORDS: [&str; 9] =
    ["NVRM", "nvidia", "amdgpu", "vfio", "iommu", "DMAR", "AMD-Vi", "AER", "pcieport"];

/// The sections, each with its heading; one that failed says why.
pub(super) fn render(sections: &[(&str, Result<String, String>)]) -> String {
    let mut text = String::new();
    for (heading, section) in sections {
        text += &format!("== {heading} ==\n");
        match section {
            Ok(body) => text += body,
            Err(why) => text += &format!("not available: {why}\n"),
        }
        text += if text.ends_with('\n') { "\n" } else { "\n\n" };
    }
    text
}

/// The kernel's lines about GPUs and what they hang on, from /dev/kmsg (`Documentation/ABI/testing/dev-kmsg`: one record per
/// read, `priority,sequence,microseconds,flags;text`).
pub(super) fn kernel_lines(root: &Path) -> Result<String, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error}; run this as root"),
        _ => error.to_string(),
    };
    let path = root.join("dev/kmsg");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened =
        rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(opened);
    let mut lines = Vec::new();
    let mut record = vec![0; 8192];
    let mut total = 0;
    while total < KERNEL_BYTES {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                total += length;
                let text = String::from_utf8_lossy(&record[..length]).into_owned();
                lines.extend(text.lines().filter_map(kernel_line));
            }
            // Overwritten meanwhile: the next read goes on with the oldest one.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            // No more for now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(failed(error)),
        }
    }
    if lines.is_empty() {
        return Ok("none\n".to_owned());
    }
    Ok(lines[lines.len().saturating_sub(KERNEL_LINES)..].join("\n") + "\n")
}

/// `[seconds] text` of a record that is worth showing.
fn kernel_line(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let time: u64 = head.split(',').nth(2)?.parse().ok()?;
    let is_wanted = KERNEL_WORDS.iter().any(|word| text.contains(word));
    is_wanted.then(|| format!("[{:>12.6}] {text}", time as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_that_failed_says_why() {
        let text = render(&[("a", Ok("one\n".to_owned())), ("b", Err("x is missing".to_owned()))]);
        assert_eq!(text, "== a ==\none\n\n== b ==\nnot available: x is missing\n\n");
    }

    #[test]
    fn records_of_the_kernel() {
        let check =
            |record: &str, expected: Option<&str>| assert_eq!(kernel_line(record).as_deref(), expected);
        check("6,339,5140900,-;NVRM: Xid 79", Some("[    5.140900] NVRM: Xid 79"));
        check("6,339,5140900,-;usb 1-1: new device", None);
        check(" SUBSYSTEM=acpi", None);
    }
}
