//! The known name closest to a mistyped one.

/// The nearest of `known` to `word`, if it is near enough to be suggested: it begins with `word`, or at most two letters
/// differ (one in the shortest), or a third of the longer name's.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any name of ours: the table below stays small whatever was typed.
    const LONGEST: usize = 64;
    if word.is_empty() || word.len() > LONGEST {
        return None;
    }
    let cost = |name: &str| if name.starts_with(word) { 1 } else { distance(word, name) };
    known
        .into_iter()
        .map(|name| (cost(name), name))
        .min_by_key(|(cost, _)| *cost)
        .filter(|(cost, name)| {
            let longer = word.len().max(name.len());
            *cost <= (longer / 3).max(2).min(longer / 2)
        })
        .map(|(_, name)| name)
}

/// How many insertions, deletions, replacements and swaps of neighbours lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // rows[i][j]: the distance from a's first i bytes to b's first j.
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_find_their_name() {
        let known = ["state-dir", "workers", "queue-limit", "log", "log-format", "runtime"];
        let check = |word: &str, expected: Option<&str>| assert_eq!(nearest(word, known), expected, "{word}");
        check("worker", Some("workers"));
        check("wrokers", Some("workers"));
        check("state", Some("state-dir"));
        check("state_dir", Some("state-dir"));
        check("max-workers", None);
        check("runtmie", Some("runtime"));
        check("time", None);
        check("lo", Some("log"));
        check("fog", Some("log"));
        check("fig", None);
        check("lgo", Some("log"));
        check("xyzzy", None);
        check("", None);
        check(&"w".repeat(10_000), None);
    }

    #[test]
    fn distances() {
        let check = |a: &str, b: &str, expected| assert_eq!(distance(a, b), expected, "{a} {b}");
        check("", "", 0);
        check("", "abc", 3);
        check("abc", "abc", 0);
        check("ab", "ba", 1);
        check("kitten", "sitting", 3);
    }
}
