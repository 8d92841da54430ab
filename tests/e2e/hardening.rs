//! What the agent's process shows of itself, and what the programs inherit that it starts. No engine is needed.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use crate::support::agent::Node;
use crate::support::control_plane::WAIT;
use crate::support::wait::{wait_for, wait_until};

/// A user that has nothing.
const NOBODY: u32 = 65_534;

fn write_program(node: &Node, name: &str, script: &str) -> String {
    let path = node.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn its_calls_inherit_nothing_that_is_not_theirs() {
    let mut node = Node::new("its_calls_inherit_nothing_that_is_not_theirs");
    let said = "{ cat /proc/$$/limits; ls -l /proc/$$/fd; env; } >$0.$$; mv $0.$$ $0.said; exit 1";
    let cli = write_program(&node, "docker", said);
    let path = node.path().to_str().unwrap().to_owned();
    fs::create_dir(node.path().join(".docker")).unwrap();
    fs::write(node.path().join("open"), "").unwrap();
    node.set("container-cli", &cli).set("url", "ws://127.0.0.1:9/").env("HOME", &path);
    node.env("VECTORLAY_TOKEN", "t").env("DOCKER_CONFIG", &path);
    let inherit = format!("exec 9<{path}/open; exec \"$0\" \"$@\"");
    node.around = ["sh", "-c", &inherit].map(str::to_owned).to_vec();
    let agent = node.start();
    let said = wait_for(WAIT, || fs::read_to_string(format!("{cli}.said")).ok()).unwrap();
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    let limit: Vec<String> =
        line("Max core file size").split_whitespace().skip(4).map(str::to_owned).collect();
    assert_eq!(limit[..2], ["0", "0"], "{said}");
    let own = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().flatten();
    let own = own.filter_map(|entry| fs::read_link(entry.path()).ok());
    assert!(own.into_iter().any(|file| file == node.path().join("open")), "the agent has it");
    assert!(!said.contains(&format!("{path}/open")), "{said}");
    let config = line("DOCKER_CONFIG=");
    assert!(config.starts_with("DOCKER_CONFIG=/run/vectorlay/pulls/"), "{said}");
    assert!(!fs::exists(format!("{}/config.json", config.trim_start_matches("DOCKER_CONFIG="))).unwrap());
    drop(agent);
    // The owner may lend logins to every deploy.
    fs::remove_file(format!("{cli}.said")).unwrap();
    node.set("docker-config", &format!("{path}/.docker"));
    let _agent = node.start();
    // A call of the agent before may be the last one to write.
    let lent = format!("DOCKER_CONFIG={path}/.docker\n");
    let said = || fs::read_to_string(format!("{cli}.said")).ok().filter(|said| said.contains(&lent));
    wait_for(WAIT, said).unwrap();
}

#[test]
fn its_memory_is_nobodys() {
    let node = Node::new("its_memory_is_nobodys");
    let binary = node.path().join("agent");
    fs::copy(node.binary(), &binary).unwrap();
    fs::set_permissions(node.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new("setpriv")
        .args(["--reuid", &NOBODY.to_string(), "--clear-groups"])
        .arg(binary)
        .args(["status", "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A process that may not be dumped belongs, in /proc, to root, so that its own user cannot look into it.
    let place = format!("/proc/{}/environ", child.id());
    let is = |uid: u32| fs::metadata(&place).is_ok_and(|found| found.uid() == uid);
    let runs =
        || fs::read_to_string(format!("/proc/{}/comm", child.id())).is_ok_and(|name| name.trim() == "agent");
    wait_until(WAIT, "the agent runs as nobody, and is root's", || runs() && is(0));
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    assert!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}")), "{status}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_cli_that_others_could_replace_is_not_run() {
    let mut node = Node::new("a_cli_that_others_could_replace_is_not_run");
    let cli = write_program(&node, "nerdctl", "touch $0.ran");
    fs::set_permissions(&cli, fs::Permissions::from_mode(0o777)).unwrap();
    node.set("container-cli", &cli).set("url", "ws://127.0.0.1:9/").env("VECTORLAY_TOKEN", "t");
    let agent = node.start();
    let fix = format!("run `chmod go-w {cli}`");
    agent.wait_line(WAIT, |line| line.contains(&fix));
    let (_, said) = node.said(&["check"]);
    assert!(said.contains(&fix), "{said}");
    assert!(!fs::exists(format!("{cli}.ran")).unwrap());
}

#[test]
fn a_log_folder_in_other_hands_is_left_alone() {
    let mut node = Node::new("a_log_folder_in_other_hands_is_left_alone");
    let cli = write_program(&node, "nerdctl", "exit 1");
    let logs = node.path().join("logs");
    fs::create_dir(&logs).unwrap();
    std::os::unix::fs::chown(&logs, Some(NOBODY), None).unwrap();
    fs::set_permissions(&logs, fs::Permissions::from_mode(0o700)).unwrap();
    node.set("container-cli", &cli).set("log-driver", "file").set("runtime", "io.containerd.runc.v2");
    node.set("url", "ws://127.0.0.1:9/").env("VECTORLAY_TOKEN", "t");
    let agent = node.start();
    agent.wait_line(WAIT, |line| line.contains("belongs to user 65534") && line.contains("json-file"));
}
