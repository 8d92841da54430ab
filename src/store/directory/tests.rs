//! The state directory on real file systems, and on a model of one that loses power.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::types::NodeId;

/// A path of the test's own, with nothing there yet.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("vectorlay-{test}-{}-{count}", std::process::id())))
    }

    fn open(&self) -> Directory {
        Directory::open(&self.0).unwrap()
    }

    fn put(&self, name: &str, content: &[u8]) {
        fs::create_dir_all(&self.0).unwrap();
        fs::write(self.0.join(name), content).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn state(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_and_directory_are_for_the_owner_alone() {
    let place = Place::new("modes");
    let nested = place.0.join("a/b");
    let mut directory = Directory::open(&nested).unwrap();
    directory.save(RecordFile::State, &state("{}")).unwrap();
    assert_eq!((mode(&nested), mode(&nested.join("state.json"))), (0o700, 0o600));
    drop(directory);
    fs::set_permissions(&nested, fs::Permissions::from_mode(0o755)).unwrap();
    drop(Directory::open(&nested).unwrap());
    assert_eq!(mode(&nested), 0o700);
}

#[test]
fn a_second_agent_is_told_who_holds_the_lock() {
    let place = Place::new("lock");
    let first = place.open();
    let error = Directory::open(&place.0).unwrap_err().to_string();
    let path = place.0.display().to_string();
    assert!(
        error.contains("locked by another agent") && error.contains(&path) && error.contains("state_dir"),
        "{error}"
    );
    drop(first);
    drop(place.open());
}

#[test]
fn the_holder_in_proc_locks() {
    let locks = "1: POSIX  ADVISORY  READ 5433 08:01:7864448 128 128\n\
                 2: FLOCK  ADVISORY  WRITE 2001 fe:0a:263 0 EOF\n\
                 2: -> FLOCK  ADVISORY  WRITE 2002 fe:0a:263 0 EOF\n\
                 3: FLOCK  ADVISORY  WRITE 0 00:1b:264 0 EOF\n";
    let check = |major: u32, minor: u32, ino: u64, expected: Option<u32>| {
        assert_eq!(holder_in(locks, rustix::fs::makedev(major, minor), ino), expected, "{ino}");
    };
    check(0xfe, 10, 263, Some(2001));
    check(0xfe, 11, 263, None);
    check(0, 0x1b, 264, None);
    check(8, 1, 7864448, None);
}

#[test]
fn what_is_no_directory_is_refused() {
    let place = Place::new("file");
    fs::write(&place.0, "x").unwrap();
    let error = Directory::open(&place.0).unwrap_err().to_string();
    assert!(error.contains("Not a directory") && error.contains("check what is in its place"), "{error}");
    fs::remove_file(&place.0).unwrap();
}

#[test]
fn damaged_files_are_kept_and_reported() {
    let place = Place::new("damaged");
    let check = |content: &[u8], kept: &str| {
        place.put("node.json", content);
        let mut directory = place.open();
        let Found::Damaged(why) = directory.load_identity().unwrap() else { panic!("{content:?}") };
        assert!(why.contains(&format!("/{kept}")) && !why.contains("hunter2"), "{why}");
        assert_eq!(fs::read(place.0.join(kept)).unwrap(), content);
        assert_eq!(directory.load_identity().unwrap(), Found::Absent);
    };
    check(b"", "node.json.damaged-1");
    check(b"\0\0\0\0\0\0\0\0", "node.json.damaged-2");
    check(br#"{"node_id":"node-1","node_token":"hunter2"#, "node.json.damaged-3");
    check(b"\xff\xfe", "node.json.damaged-4");
    check(&vec![b' '; NODE_MAX + 1], "node.json.damaged-5");
    place.put("state.json", b"{\"half\":");
    let Found::Damaged(why) = place.open().load_json(RecordFile::State).unwrap() else { panic!() };
    assert!(why.contains("state.json.damaged-1"), "{why}");
}

#[test]
fn a_damaged_file_that_cannot_be_kept_is_not_overwritten() {
    let place = Place::new("in-the-way");
    place.put("state.json", b"precious");
    for n in 1..=DAMAGED_MAX {
        place.put(&format!("state.json.damaged-{n}"), b"");
    }
    let mut directory = place.open();
    assert!(
        matches!(directory.load_json(RecordFile::State).unwrap(), Found::Damaged(why) if why.contains("not overwritten"))
    );
    let error = directory.save(RecordFile::State, &state("{}")).unwrap_err();
    assert!(error.contains("cannot rename"), "{error}");
    assert_eq!(fs::read(place.0.join("state.json")).unwrap(), b"precious");
    fs::remove_file(place.0.join("state.json.damaged-7")).unwrap();
    directory.save(RecordFile::State, &state("{}")).unwrap();
    assert_eq!(fs::read(place.0.join("state.json.damaged-7")).unwrap(), b"precious");
    assert_eq!(directory.load_json(RecordFile::State).unwrap(), Found::Good("{}".to_owned()));
}

#[test]
fn what_is_not_a_regular_file_is_unreadable_and_stays() {
    let place = Place::new("special");
    fs::create_dir_all(place.0.join("node.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.0.join("state.json"),
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let mut directory = place.open();
    let error = directory.load_identity().unwrap_err().to_string();
    assert!(error.contains("node.json") && error.contains("not a regular file"), "{error}");
    assert!(directory.load_json(RecordFile::State).unwrap_err().contains("cannot read"));
    assert_eq!(place.names(), ["node.json", "state.json"]);
}

#[test]
fn too_large_a_state_is_not_saved() {
    let place = Place::new("large");
    let mut directory = place.open();
    directory.save(RecordFile::State, &state("1")).unwrap();
    let large = state(&" ".repeat(STATE_MAX + 1));
    assert!(directory.save(RecordFile::State, &large).unwrap_err().contains("would exceed"));
    assert_eq!(directory.load_json(RecordFile::State).unwrap(), Found::Good("1".to_owned()));
}

/// Mounts a file system of 64 KiB at `place`; `None` (and a line that says so) where that is not allowed.
fn mounted(place: &Place) -> Option<Mounted> {
    fs::create_dir_all(&place.0).unwrap();
    let mount = |options: &str| {
        let run =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "vectorlay"]).arg(&place.0).output();
        run.is_ok_and(|output| output.status.success())
    };
    if mount("size=64k,mode=700") {
        Some(Mounted(place.0.clone()))
    } else {
        println!(
            "skipped: {} needs to mount a file system",
            std::thread::current().name().unwrap_or_default()
        );
        None
    }
}

struct Mounted(PathBuf);

impl Mounted {
    fn read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let place = Place::new("full");
    let Some(_mounted) = mounted(&place) else { return };
    let mut directory = place.open();
    directory.save(RecordFile::State, &state("{\"old\":1}")).unwrap();
    let error =
        directory.save(RecordFile::State, &state(&format!("\"{}\"", "x".repeat(100_000)))).unwrap_err();
    assert!(
        error.to_string().contains("state.json: No space left") && error.to_string().contains("free some")
    );
    assert_eq!(place.names(), ["state.json"]);
    assert_eq!(directory.load_json(RecordFile::State).unwrap(), Found::Good("{\"old\":1}".to_owned()));
    directory.save(RecordFile::State, &state("{\"new\":1}")).unwrap();
    assert_eq!(directory.load_json(RecordFile::State).unwrap(), Found::Good("{\"new\":1}".to_owned()));
}

#[test]
fn a_read_only_disk_starts_and_loads() {
    let place = Place::new("read-only");
    let Some(mounted) = mounted(&place) else { return };
    place.put("state.json", b"{\"old\":1}");
    place.put("node.json", b"damaged");
    mounted.read_only();
    let mut directory = place.open();
    assert_eq!(directory.load_json(RecordFile::State).unwrap(), Found::Good("{\"old\":1}".to_owned()));
    assert!(
        matches!(directory.load_identity().unwrap(), Found::Damaged(why) if why.contains("stays in place"))
    );
    let error = directory.save(RecordFile::State, &state("{}")).unwrap_err().to_string();
    assert!(error.contains("Read-only file system") && error.contains("mount that"), "{error}");
}

/// The variable that hands a folder to [`as_another_user`].
const FOLDER: &str = "VECTORLAY_TEST_FOLDER";

#[test]
fn without_permission_it_is_an_error_and_no_absence() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: without_permission_it_is_an_error_and_no_absence needs root");
        return;
    }
    let place = Place::new("permission");
    fs::create_dir_all(place.0.join("mine")).unwrap();
    fs::create_dir_all(place.0.join("theirs")).unwrap();
    fs::write(place.0.join("theirs/node.json"), "{}").unwrap();
    fs::set_permissions(place.0.join("theirs/node.json"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(place.0.join("theirs"), Some(65_534), None).unwrap();
    let run = Command::new("/proc/self/exe")
        .args(["--exact", "store::directory::tests::as_another_user", "--ignored", "--nocapture"])
        .env(FOLDER, &place.0)
        .uid(65_534)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && output.contains("1 passed"), "{output}");
}

#[test]
#[ignore = "started by another test, as another user"]
fn as_another_user() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let mut directory = Directory::open(&folder.join("theirs")).unwrap();
    let error = directory.load_identity().unwrap_err();
    assert!(error.to_string().contains("Permission denied"), "{error}");
    let error = Directory::open(&folder.join("mine")).unwrap_err();
    assert!(error.contains("belongs to user 0, but the agent runs as user 65534"), "{error}");
    let error = Directory::open(&folder.join("mine/below")).unwrap_err();
    assert!(error.to_string().contains("Permission denied"), "{error}");
}

/// A disk that forgets, when its power is cut, any part of what was not synced: each change of a name by itself,
/// and of a file's content any tail (which may also come back as zeros).
#[derive(Default)]
struct Disk {
    contents: Vec<Content>,
    names: BTreeMap<&'static str, usize>,
    durable_names: BTreeMap<&'static str, usize>,
    pending: Vec<NameChange>,
}

struct Content {
    bytes: Vec<u8>,
    synced: bool,
}

#[derive(Clone, Copy)]
enum NameChange {
    Link(&'static str, usize),
    Rename(&'static str, &'static str, usize),
    Unlink(&'static str),
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<&'static str, usize>) {
        match self {
            Self::Link(name, content) => drop(names.insert(name, content)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to, content) => {
                names.remove(from);
                names.insert(to, content);
            }
        }
    }
}

impl Disk {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn perform(&mut self, step: Step, file: RecordFile, bytes: &[u8]) {
        let temporary = temporary(file);
        match step {
            Step::Create => {
                self.contents.push(Content { bytes: Vec::new(), synced: false });
                self.change(NameChange::Link(temporary, self.contents.len() - 1));
            }
            Step::Write => self.contents[self.names[temporary]].bytes = bytes.to_vec(),
            Step::SyncFile => self.contents[self.names[temporary]].synced = true,
            Step::Rename => self.change(NameChange::Rename(temporary, file.name(), self.names[temporary])),
            Step::SyncDirectory => {
                self.durable_names = self.names.clone();
                self.pending.clear();
            }
        }
    }

    /// Every state that the disk may be in after a power cut now, as files.
    fn after_power_cut(&self) -> Vec<BTreeMap<&'static str, Vec<u8>>> {
        let mut states = Vec::new();
        for chosen in 0..1_u32 << self.pending.len() {
            let mut names = self.durable_names.clone();
            for (i, change) in self.pending.iter().enumerate() {
                if chosen & 1 << i != 0 {
                    change.apply(&mut names);
                }
            }
            for variant in 0..4 {
                let survived = |content: &Content| match (content.synced, variant) {
                    (true, _) | (false, 0) => content.bytes.clone(),
                    (false, 1) => Vec::new(),
                    (false, 2) => content.bytes[..content.bytes.len() / 2].to_vec(),
                    (false, _) => vec![0; content.bytes.len()],
                };
                states.push(names.iter().map(|(name, i)| (*name, survived(&self.contents[*i]))).collect());
            }
        }
        states
    }
}

/// A save: the file, its content, and the steps after which it fails, if it does.
type Save<'a> = (RecordFile, &'a str, Option<usize>);

/// Saves one content after the other with the steps of `plan`, cutting the power after each step. Returns how many cuts
/// were tried and how many were not survived: with a file that is neither old nor new, or a table newer than the state
/// beside it (those of the tests begin with their number).
fn cut_everywhere(plan: &[Step], saves: &[Save<'_>]) -> (usize, usize) {
    let mut disk = Disk::default();
    // What a start may find of each file: nothing, at first; then what was last confirmed or put in place since.
    let mut allowed: BTreeMap<RecordFile, Vec<Option<String>>> = BTreeMap::new();
    for file in [RecordFile::Node, RecordFile::State, RecordFile::Table] {
        allowed.insert(file, vec![None]);
    }
    let (mut tried, mut lost) = (0, 0);
    let mut cut = |disk: &Disk, allowed: &BTreeMap<RecordFile, Vec<Option<String>>>| {
        for files in disk.after_power_cut() {
            let place = Place::new("power-cut");
            for (name, bytes) in &files {
                place.put(name, bytes);
            }
            let mut directory = place.open();
            let mut survived = true;
            let mut load = |file: RecordFile| {
                let found = match file {
                    RecordFile::State | RecordFile::Table => directory.load_json(file).unwrap(),
                    RecordFile::Node => match directory.load_identity().unwrap() {
                        Found::Good(identity) => Found::Good(identity::write(&identity).expose().to_owned()),
                        Found::Absent => Found::Absent,
                        Found::Damaged(why) | Found::Newer(why) => Found::Damaged(why),
                    },
                };
                let found = match found {
                    Found::Good(text) => Some(text),
                    Found::Absent => None,
                    Found::Damaged(why) | Found::Newer(why) => Some(why),
                };
                survived &= allowed[&file].contains(&found);
                found
            };
            load(RecordFile::Node);
            let [state, table] = [RecordFile::State, RecordFile::Table].map(|file| {
                let text = load(file).unwrap_or_default();
                text.trim_start_matches('[').split(']').next().and_then(|n| n.parse::<u32>().ok())
            });
            tried += 1;
            lost += usize::from(!survived || table > state);
            let left = |file| place.names().contains(&temporary(file).to_owned());
            assert!(!left(RecordFile::Node) && !left(RecordFile::State) && !left(RecordFile::Table));
        }
    };
    for (file, content, fails_after) in saves {
        for step in &plan[..fails_after.unwrap_or(plan.len())] {
            disk.perform(*step, *file, content.as_bytes());
            let content = Some((*content).to_owned());
            match step {
                Step::Create | Step::Write | Step::SyncFile => {}
                Step::Rename => allowed.get_mut(file).unwrap().push(content),
                Step::SyncDirectory => _ = allowed.insert(*file, vec![content]),
            }
            cut(&disk, &allowed);
        }
        if fails_after.is_some() && disk.names.contains_key(temporary(*file)) {
            disk.change(NameChange::Unlink(temporary(*file)));
            cut(&disk, &allowed);
        }
    }
    (tried, lost)
}

#[test]
fn a_power_cut_leaves_old_or_new() {
    use RecordFile::{Node, State, Table};
    let check = |saves: &[Save<'_>]| {
        let (tried, lost) = cut_everywhere(SAVE, saves);
        assert!(tried > 20 && lost == 0, "{lost} of {tried}");
    };
    check(&[(State, "{\"a\":1}", None), (State, "{\"b\":2}", None), (State, "{\"c\":3}", None)]);
    for fails_after in 0..SAVE.len() {
        let fails = Some(fails_after);
        check(&[(State, "[1]", None), (State, "[2]", fails), (State, "[3]", None)]);
        check(&[(State, "[1]", fails), (State, "[2]", None)]);
        // A table is written when the state that it was composed with has arrived.
        check(&[(State, "[1]", None), (Table, "[1]", fails), (State, "[2]", None)]);
        check(&[(State, "[1]", None), (Table, "[1]", None), (State, "[2]", fails), (State, "[3]", None)]);
        check(&[(State, "[2]", None), (State, "[3]", fails), (Table, "[2]", None)]);
    }
    let states = [(State, "[1]", None), (State, "[2]", None), (State, "[3]", None), (State, "[4]", None)];
    check(&[states[0], (Table, "[1]", None), states[1], states[2], (Table, "[2]", None), states[3]]);
    let node = |id: &str| {
        let node_id = NodeId::new(id).unwrap();
        identity::write(&Identity { node_id, node_token: None, spec_key: Some([1; 32]) })
    };
    check(&[(Node, node("a").expose(), None), (Node, node("b").expose(), None)]);
}

#[test]
fn the_model_finds_what_a_careless_save_loses() {
    let without = |step: Step| -> Vec<Step> { SAVE.iter().copied().filter(|other| *other != step).collect() };
    use RecordFile::{State, Table};
    let states = [(State, "[1]", None), (State, "[2]", None)];
    let (_, lost) = cut_everywhere(&without(Step::SyncFile), &states);
    assert!(lost > 0);
    let (_, lost) = cut_everywhere(SAVE, &[states[0], (Table, "[2]", None), states[1]]);
    assert!(lost > 0);
}

#[test]
fn maintenance_outlives_a_damaged_state() {
    let place = Place::new("mode");
    let mut directory = place.open();
    assert_eq!(directory.last_mode(), None);
    directory.save(RecordFile::State, &state(r#"{"version":1,"mode":"maintenance"}"#)).unwrap();
    drop(directory);
    place.put("state.json", b"{\"version\":1,\"mo");
    let mut directory = place.open();
    assert!(matches!(directory.load_json(RecordFile::State).unwrap(), Found::Damaged(_)));
    assert_eq!(directory.last_mode().as_deref(), Some("maintenance"));
    directory.save(RecordFile::State, &state(r#"{"version":1,"mode":"online"}"#)).unwrap();
    assert_eq!(directory.last_mode().as_deref(), Some("online"));
}

#[test]
fn a_newer_versions_state_is_kept_untouched() {
    let place = Place::new("newer");
    let newer = format!(r#"{{"version":{},"mode":"maintenance","more":1}}"#, STATE_VERSION + 1);
    place.put("state.json", newer.as_bytes());
    let mut directory = place.open();
    let Found::Newer(why) = directory.load_json(RecordFile::State).unwrap() else { panic!() };
    let kept = format!("state.json.version-{}-1", STATE_VERSION + 1);
    assert!(why.contains(&kept), "{why}");
    directory.save(RecordFile::State, &state("{}")).unwrap();
    assert_eq!(fs::read(place.0.join(kept)).unwrap(), newer.as_bytes());
}

#[test]
fn an_identity_of_another_users_is_not_taken() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new("owner");
    let mut directory = Directory::open(&place.0).unwrap();
    let file = place.0.join("node.json");
    std::fs::write(&file, r#"{"node_id":"a"}"#).unwrap();
    std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
    let error = directory.load_identity().unwrap_err();
    assert!(error.contains("node.json") && error.contains("belongs to user 65534"), "{error}");
    assert!(file.exists());
}
