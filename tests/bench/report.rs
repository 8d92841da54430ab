//! What was measured, as tables for people and as JSON; which goals were missed, and how it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

/// A figure of one rival with so many replicas, one value for each repetition.
#[derive(Default)]
pub struct Figures(BTreeMap<Key, (String, Vec<f64>)>);

/// Figure, replicas, rival.
type Key = (String, Option<usize>, String);

/// What counts of the values: see [`Goal`].
#[derive(Clone, Copy)]
enum Of {
    Median,
    Largest,
}

/// A goal of the agent's.
struct Goal {
    what: &'static str,
    value: Option<f64>,
    at_most: f64,
}

impl Figures {
    pub fn add(&mut self, figure: &str, rival: &str, replicas: Option<usize>, unit: &str, value: f64) {
        let key = (figure.to_owned(), replicas, rival.to_owned());
        self.0.entry(key).or_insert_with(|| (unit.to_owned(), Vec::new())).1.push(value);
    }

    fn get(&self, figure: &str, replicas: Option<usize>, rival: &str, of: Of) -> Option<f64> {
        let (_, values) = self.0.get(&(figure.to_owned(), replicas, rival.to_owned()))?;
        let mut values = values.clone();
        values.sort_by(f64::total_cmp);
        match of {
            Of::Median => values.get(values.len() / 2).copied(),
            Of::Largest => values.last().copied(),
        }
    }

    fn ratio(&self, figure: &str, replicas: Option<usize>, rival: &str) -> Option<f64> {
        let [ours, theirs] = ["agent", rival].map(|name| self.get(figure, replicas, name, Of::Median));
        ours.zip(theirs).map(|(ours, theirs)| ours / theirs)
    }

    /// How much more it is with the most replicas than with the fewest.
    fn growth(&self, figure: &str) -> Option<f64> {
        let ours = self.0.keys().filter(|key| key.0 == figure && key.2 == "agent");
        let counts: BTreeSet<usize> = ours.filter_map(|key| key.1).collect();
        let (fewest, most) = counts.first().zip(counts.last()).filter(|_| counts.len() > 1)?;
        let [many, few] = [most, fewest].map(|count| self.get(figure, Some(*count), "agent", Of::Median));
        many.zip(few).map(|(many, few)| many / few)
    }

    fn goals(&self) -> Vec<Goal> {
        let (started, ended) = ("command received → CLI started", "CLI ended → result on the wire");
        let ours = |figure: &str, count| self.get(figure, Some(count), "agent", Of::Median);
        let late = |scene: &str| {
            let floor = if scene == "flooded" { scene } else { "idle" };
            let [ours, floor] = [(scene, "agent"), (floor, "floor")].map(|(scene, rival)| {
                self.get(&format!("heartbeat lateness, {scene}"), None, rival, Of::Largest)
            });
            Some(ours? - floor?)
        };
        [
            ("deploy ÷ bare run", self.ratio("deploy", None, "bare CLI"), 1.01),
            ("stop ÷ bare stop and rm", self.ratio("stop", None, "bare CLI"), 1.05),
            ("command received → CLI started, ms", ours(started, 0), 1.0),
            ("the same, most replicas ÷ fewest", self.growth(started), 1.1),
            ("CLI ended → result on the wire, ms", ours(ended, 0), 0.8),
            ("the same, most replicas ÷ fewest", self.growth(ended), 1.1),
            ("heartbeat lateness beyond the floor, idle, ms", late("idle"), 5.0),
            ("the same, all workers hung, ms", late("all workers hung"), 5.0),
            ("the same, 500 replicas, ms", late("500 replicas"), 10.0),
            ("the same, flooded with messages of 4 MiB, ms", late("flooded"), 50.0),
            ("resident without replicas, MB", ours("resident", 0), 2.7),
            ("the same, 200 replicas, MB", ours("resident", 200), 3.0),
            ("the same, 500 replicas, MB", ours("resident", 500), 3.5),
            ("processor time in an hour, 20 replicas, s", ours("processor time in an hour", 20), 0.5),
            ("the same, 500 replicas, s", ours("processor time in an hour", 500), 0.7),
            (
                "instructions for a deploy, most replicas ÷ fewest",
                self.growth("instructions of the core for a deploy"),
                1.1,
            ),
            (
                "clean build of the tests, s",
                self.get("clean build of the tests", None, "agent", Of::Median),
                240.0,
            ),
            ("its folder, MB", self.get("the same, its folder", None, "agent", Of::Median), 700.0),
            ("binary, MB", self.get("binary", None, "agent", Of::Median), 2.75),
        ]
        .into_iter()
        .map(|(what, value, at_most)| Goal { what, value, at_most })
        .collect()
    }

    /// What no change may do: worse than this against a rival of the same run, or against itself with few replicas. A
    /// busy machine does the same to both; the limits leave room for a disk that is slow to save, which no rival does.
    pub fn broken_limits(&self) -> Vec<String> {
        let (started, ended) = ("command received → CLI started", "CLI ended → result on the wire");
        let beside = |figure, rival, at_most| (figure, rival, self.ratio(figure, Some(0), rival), at_most);
        let grown =
            |figure, at_most| (figure, "itself with the fewest replicas", self.growth(figure), at_most);
        let limits = [
            beside(started, "Go", 40.0),
            beside(ended, "Go", 80.0),
            beside(started, "Node.js", 4.0),
            beside(ended, "Node.js", 10.0),
            grown(started, 2.0),
            grown(ended, 2.0),
            // These are counted: no machine is too busy for them.
            grown("instructions of the core for a deploy", 1.1),
        ];
        let broken = limits.into_iter().filter_map(|(figure, rival, ratio, at_most)| {
            let ratio = ratio.filter(|ratio| *ratio > at_most)?;
            Some(format!("{figure}: {ratio:.2} times that of {rival}, and at most {at_most} is allowed"))
        });
        broken.collect()
    }

    pub fn markdown(&self, head: &[(String, String)], before: Option<&Value>) -> String {
        let mut text = String::new();
        for (what, value) in head {
            let _ = writeln!(text, "- {what}: {value}");
        }
        text.push_str("\n| goal | measured | at most | |\n|---|---|---|---|\n");
        for Goal { what, value, at_most } in self.goals() {
            let (measured, verdict) = match value {
                None => ("not measured".to_owned(), ""),
                Some(value) if value <= at_most => (number(value), "met"),
                Some(value) => (number(value), "**missed**"),
            };
            let _ = writeln!(text, "| {what} | {measured} | {at_most} | {verdict} |");
        }
        text.push_str("\n| figure | replicas | rival | median | least | most | values |");
        text.push_str(if before.is_some() {
            " ÷ before |\n|---|---|---|---|---|---|---|---|\n"
        } else {
            "\n|---|---|---|---|---|---|---|\n"
        });
        for ((figure, replicas, rival), (unit, values)) in &self.0 {
            let replicas_shown = replicas.map_or_else(String::new, |count| count.to_string());
            let median = self.get(figure, *replicas, rival, Of::Median).unwrap_or(f64::NAN);
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let figure_shown = if unit.is_empty() { figure.clone() } else { format!("{figure}, {unit}") };
            let _ = write!(
                text,
                "| {figure_shown} | {replicas_shown} | {rival} | {} | {} | {} | {} |",
                number(median),
                number(least),
                number(most),
                values.len()
            );
            if let Some(before) = before {
                let all = before["figures"].as_array().into_iter().flatten();
                let mut same = all.filter(|old| {
                    old["figure"] == figure.as_str()
                        && old["rival"] == rival.as_str()
                        && old["replicas"] == json!(replicas)
                });
                let old = same.next().and_then(|old| old["median"].as_f64());
                let _ =
                    write!(text, " {} |", old.map_or_else(|| "new".to_owned(), |old| number(median / old)));
            }
            text.push('\n');
        }
        text
    }

    pub fn json(&self, head: &[(String, String)]) -> Value {
        let one = |((figure, replicas, rival), (unit, values)): (&Key, &(String, Vec<f64>))| {
            json!({
                "figure": figure, "replicas": replicas, "rival": rival, "unit": unit,
                "median": self.get(figure, *replicas, rival, Of::Median), "values": values,
            })
        };
        let goals = self
            .goals()
            .into_iter()
            .map(|goal| json!({ "goal": goal.what, "measured": goal.value, "at_most": goal.at_most }));
        let head: BTreeMap<_, _> = head.iter().cloned().collect();
        json!({ "head": head, "goals": goals.collect::<Vec<_>>(), "figures": self.0.iter().map(one).collect::<Vec<_>>() })
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
