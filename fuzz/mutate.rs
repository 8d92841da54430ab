//! Inputs: the text literals of the readers' own sources and tests, which have what real programs print, changed at random.
//! So there is no corpus to keep, and whatever a test learns, fuzzing learns.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use crate::targets::Target;

/// The longest input, in bytes.
pub const INPUT_MAX: usize = 32 << 10;
/// A literal that is longer is a seed, one that is shorter a word.
const SEED_MIN: usize = 12;
const WORD_MAX: usize = 48;
/// Numbers at which readers go wrong.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "127",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "1e999",
    "0x7fffffff",
];

/// Makes the inputs of one target.
pub struct Mutator {
    name: &'static str,
    choices: u8,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Mutator {
    pub fn new(target: &Target) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut seeds, mut words) = (Vec::new(), Vec::new());
        for source in target.sources {
            let text = std::fs::read_to_string(root.join(source)).unwrap_or_else(|e| panic!("{source}: {e}"));
            let literals = if source.ends_with(".rs") { literals(&text) } else { blocks(&text) };
            for literal in literals {
                if literal.len() <= WORD_MAX && !literal.is_empty() {
                    words.push(literal.clone());
                }
                if literal.len() >= SEED_MIN {
                    seeds.push(literal);
                }
            }
        }
        words.extend(NUMBERS.map(|number| number.as_bytes().to_vec()));
        Self { name: target.name, choices: target.choices, seeds, words }
    }

    /// How many seeds there are.
    pub fn seeds(&self) -> usize {
        self.seeds.len()
    }

    pub fn write_seeds(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (n, seed) in self.seeds.iter().enumerate() {
            let mut input = Vec::new();
            if self.choices > 0 {
                input.push((n % usize::from(self.choices)) as u8);
            }
            input.extend(seed);
            std::fs::write(folder.join(format!("seed-{n}")), input)?;
        }
        Ok(())
    }

    /// Input `n`.
    pub fn input(&self, seed: u64, n: u64) -> Vec<u8> {
        let mut random = Random::new(self.name, seed, n);
        let mut input = match random.below(32) {
            0 => Vec::new(),
            1 => (0..random.below(64)).map(|_| random.byte()).collect(),
            2..=5 => {
                // Several in a row, as lines.
                let mut lines = Vec::new();
                for _ in 0..=random.below(6) {
                    lines.extend(self.seed(&mut random));
                    lines.push(b'\n');
                }
                lines
            }
            6..=9 => [self.seed(&mut random), b"\n---\n", self.seed(&mut random)].concat(),
            _ => self.seed(&mut random).to_vec(),
        };
        let most = 1 << random.below(6);
        for _ in 0..random.below(most) {
            self.change(&mut input, &mut random);
            input.truncate(INPUT_MAX);
        }
        if self.choices > 0 {
            input.insert(0, random.below(usize::from(self.choices)) as u8);
        }
        input
    }

    fn seed(&self, random: &mut Random) -> &[u8] {
        if self.seeds.is_empty() { b"" } else { &self.seeds[random.below(self.seeds.len())] }
    }

    fn change(&self, input: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(input.len() + 1);
        let rest = input.len() - at;
        let length = random.below(rest.min(64) + 1);
        match random.below(14) {
            0 if rest > 0 => input[at] ^= 1 << random.below(8),
            1 if rest > 0 => input[at] = [0, 0x1b, b'\n', b'"', b'\\', 0x7f, 0x80, 0xff][random.below(8)],
            2 => input.insert(at, random.byte()),
            3 => drop(input.drain(at..at + length)),
            4 => input.truncate(at),
            5 => {
                let copy = input[at..at + length].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            6 => {
                let word = &self.words[random.below(self.words.len())];
                input.splice(at..at, word.iter().copied());
            }
            7 | 8 => {
                // In the place of another word.
                let (from, to) = word_at(input, at);
                let word = &self.words[random.below(self.words.len())];
                input.splice(from..to, word.iter().copied());
            }
            9 => {
                let (from, to) = word_at(input, at);
                let other = random.below(input.len() + 1);
                let (other_from, other_to) = word_at(input, other);
                let copy = input[other_from..other_to].to_vec();
                input.splice(from..to, copy);
            }
            10 => {
                // The beginning of one and the end of another.
                let other = self.seed(random);
                let end = &other[random.below(other.len() + 1)..];
                input.truncate(at);
                input.extend(end);
            }
            11 => {
                // Very often the same: what takes time in proportion to a square shows.
                let copy = input[at..at + length].to_vec();
                let times = 1 << random.below(10);
                let many = copy.repeat(times.min(INPUT_MAX / (copy.len() + 1)));
                input.splice(at..at, many);
            }
            12 if rest > 0 => {
                let text = ["\u{85}", "\u{2028}", "\u{feff}", "\u{1f600}", "\u{d7ff}", "\0"][random.below(6)];
                input.splice(at..at, text.bytes());
            }
            13 => input[at..at + length].reverse(),
            _ => {}
        }
    }
}

/// The run of letters and digits around `at`.
fn word_at(input: &[u8], at: usize) -> (usize, usize) {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let from = at - input[..at].iter().rev().take_while(|byte| is_word(byte)).count();
    let to = at + input[at..].iter().take_while(|byte| is_word(byte)).count();
    (from, to)
}

/// The text literals of a Rust source.
fn literals(source: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find(['"', '\'', '/']) {
        let (before, here) = rest.split_at(at);
        let hashes = before.len() - before.trim_end_matches('#').len();
        let is_raw = before.trim_end_matches('#').ends_with('r');
        rest = if here.starts_with("//") {
            here.find('\n').map_or("", |end| &here[end..])
        } else if here.starts_with("'\"'") || here.starts_with("'\\\"'") {
            &here[3..]
        } else if here.starts_with('"') && is_raw {
            let close = format!("\"{}", "#".repeat(hashes));
            let Some((literal, rest)) = here[1..].split_once(&close) else { break };
            found.push(literal.as_bytes().to_vec());
            rest
        } else if let Some(inner) = here.strip_prefix('"') {
            let (literal, length) = unescaped(inner);
            found.push(literal);
            inner.get(length + 1..).unwrap_or("")
        } else {
            &here[1..]
        };
    }
    found
}

/// What stands before the closing quote, and how long it is as it is written.
fn unescaped(inner: &str) -> (Vec<u8>, usize) {
    let mut text = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text.into_bytes(), at),
            '\\' => match chars.next().map_or('\0', |(_, c)| c) {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                '0' => text.push('\0'),
                'x' => {
                    let digits: String = chars.by_ref().take(2).map(|(_, c)| c).collect();
                    text.extend(u8::from_str_radix(&digits, 16).ok().map(char::from));
                }
                'u' => {
                    let digits: String =
                        chars.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').collect();
                    text.extend(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32));
                }
                // The line goes on, without the next one's indentation.
                '\n' => {
                    while chars.clone().next().is_some_and(|(_, c)| c.is_whitespace()) {
                        chars.next();
                    }
                }
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
    (text.into_bytes(), inner.len())
}

/// The blocks of code of a page, each on one line, and the words in backquotes; a file that has none is a seed itself.
fn blocks(page: &str) -> Vec<Vec<u8>> {
    let parts: Vec<&str> = page.split("```").collect();
    if parts.len() < 3 {
        return vec![page.as_bytes().to_vec()];
    }
    let mut found = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        if n % 2 == 1 {
            let block = part.split_once('\n').map_or("", |(_, block)| block);
            found.push(block.lines().map(str::trim).collect::<Vec<_>>().join(" ").into_bytes());
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(|word| word.as_bytes().to_vec()));
        }
    }
    found
}

/// SplitMix64: small, and good enough for this.
struct Random(u64);

impl Random {
    fn new(name: &str, seed: u64, n: u64) -> Self {
        // The hasher is the same in each process: its keys are zero.
        let mut hasher = DefaultHasher::new();
        (name, seed, n).hash(&mut hasher);
        Self(hasher.finish())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not zero.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

#[test]
fn literals_are_read_as_the_compiler_reads_them() {
    let source = "let a = \"one \\\"two\\\" \\x41\\u{e4}\\n\\\n     more\"; // \"a comment\"\nb(r#\"raw \"x\" \\n\"#, '\"', 'a', \"c\")";
    let found: Vec<String> = literals(source).into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
    assert_eq!(found, ["one \"two\" A\u{e4}\nmore", "raw \"x\" \\n", "c"]);
    let page = "text `word`\n```json\n{\n  \"a\": 1\n}\n```\nmore `w2`";
    let found: Vec<String> = blocks(page).into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
    assert_eq!(found, ["word", "{ \"a\": 1 }", "w2"]);
}
