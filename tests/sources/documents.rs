//! Links between the documents lead somewhere, and so do the files and functions that they name.

use std::path::{Path, PathBuf};

/// All Markdown files, but for what is built.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && ![".git", "target"].contains(&name) {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect()
}

/// What follows `](` up to `)`.
fn links(prose: &str) -> Vec<&str> {
    prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect()
}

/// The anchors of a text's headings, as rustdoc and most viewers of Markdown make them.
fn anchors(prose: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for heading in prose.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' ')) {
        let words = heading.to_lowercase().replace(' ', "-");
        let anchor: String = words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let times = found.iter().filter(|known| **known == anchor).count();
        found.push(if times > 0 { format!("{anchor}-{times}") } else { anchor });
    }
    found
}

#[test]
fn every_link_leads_somewhere() {
    let (mut files, mut tried) = (Vec::new(), 0);
    documents(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files);
    for file in files {
        let text = prose(&std::fs::read_to_string(&file).unwrap());
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link}", file.display());
            if !anchor.is_empty() {
                let there = anchors(&prose(&std::fs::read_to_string(&target).unwrap()));
                assert!(there.iter().any(|known| known == anchor), "{}: {link}", file.display());
            }
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
}

/// The file that `name` stands for: a path from the top, from src, or the end of one below src or tests.
fn source(root: &Path, name: &str) -> Option<PathBuf> {
    fn search(folder: &Path, name: &str) -> Option<PathBuf> {
        std::fs::read_dir(folder).ok()?.find_map(|entry| {
            let path = entry.ok()?.path();
            if path.is_dir() { search(&path, name) } else { path.ends_with(name).then_some(path) }
        })
    }
    let direct = [root.join(name), root.join("src").join(name)].into_iter().find(|path| path.exists());
    direct.or_else(|| search(&root.join("src"), name)).or_else(|| search(&root.join("tests"), name))
}

#[test]
fn every_file_and_function_that_the_design_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_function = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let (mut files, mut functions) = (0, 0);
    for document in ["src/design.md", "src/threat_model.md", ".github/CONTRIBUTING.md"] {
        let text = prose(&std::fs::read_to_string(root.join(document)).unwrap());
        let parts: Vec<&str> = text.split('`').collect();
        for at in (1..parts.len()).step_by(2).filter(|at| parts[*at].ends_with(".rs")) {
            let path = source(root, parts[at]).unwrap_or_else(|| panic!("{document}: no {}", parts[at]));
            files += 1;
            // `on_deploy` (`core/replica/commands.rs`), `on_deploy`, `on_stop` in `core/replica/commands.rs`
            let mut named = at;
            while named > 2
                && matches!(parts[named - 1].trim(), "(" | "in" | ",")
                && is_function(parts[named - 2])
            {
                named -= 2;
                let function = format!("fn {}(", parts[named]);
                assert!(
                    std::fs::read_to_string(&path).unwrap().contains(&function),
                    "{document}: {function}"
                );
                functions += 1;
            }
        }
    }
    assert!(files > 50 && functions > 5, "{files} {functions}");
}
