//! All of it together: an engine, a control plane, and an agent that is connected to it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Node};
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::engine::{Engine, EngineTurn};
use crate::support::wait::wait_until;

/// See the module. What is dropped first stands first: the engine is cleared when nobody uses it any more.
pub struct World {
    pub agent: Agent,
    pub plane: ControlPlane,
    pub node: Node,
    /// The node's ID.
    pub id: String,
    pub engine: EngineTurn,
}

/// A node with a token that knows the control plane; it has no engine.
pub fn node(name: &str, plane: &ControlPlane) -> Node {
    let mut node = Node::new(name);
    node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
    node
}

/// Waits until a node's first heartbeat is there: its ID.
pub fn connected(plane: &ControlPlane) -> String {
    let beat = plane.wait_event(WAIT, |event| event["type"] == "heartbeat");
    beat["node"].as_str().unwrap().to_owned()
}

impl World {
    /// None: there is no engine, and the test is counted as skipped.
    pub fn start(test: &str) -> Option<Self> {
        Self::with(test, |_, _| ()).map(|(world, ())| world)
    }

    /// The same, with settings that the test changes before the agent starts.
    pub fn with<T>(test: &str, change: impl FnOnce(&mut Node, &Engine) -> T) -> Option<(Self, T)> {
        let engine = EngineTurn::alone(test)?;
        let mut node = Node::new(test);
        engine.give_to(&mut node);
        let state = node.path().join("plane.json");
        let plane = ControlPlane::start(&["--state", state.to_str().unwrap()]);
        node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
        let made = change(&mut node, &engine);
        let agent = node.start();
        let id = connected(&plane);
        Some((Self { agent, plane, node, id, engine }, made))
    }

    /// Asks for a deploy of the engine's image with these fields besides; the request's ID.
    pub fn ask(&self, replica: &str, fields: &Value) -> String {
        self.send("deploy", &self.payload(replica, fields))
    }

    /// The payload of such a deploy.
    pub fn payload(&self, replica: &str, fields: &Value) -> Value {
        let mut payload = json!({"replica_id": replica, "image": self.engine.image});
        for (name, value) in fields.as_object().unwrap() {
            payload[name] = value.clone();
        }
        payload
    }

    /// Gives the control plane a job; the request's ID.
    pub fn send(&self, verb: &str, payload: &Value) -> String {
        let job = self.plane.api_post(&format!("/nodes/{}/{verb}", self.id), payload);
        job["request_id"].as_str().unwrap().to_owned()
    }

    /// Sends a message as it is.
    pub fn send_raw(&self, text: &str) {
        let sent = self.plane.api_post_text(&format!("/nodes/{}/send", self.id), text);
        assert_eq!(sent.0, 200, "{sent:?}");
    }

    /// The result of a request.
    pub fn result(&self, request: &str) -> Value {
        let mine = |event: &Value| {
            event["type"].as_str().is_some_and(|name| name.ends_with("_result"))
                && event["payload"]["request_id"] == request
        };
        self.plane.wait_event(WAIT, mine)["payload"].clone()
    }

    /// Deploys, which has to succeed: the container's full ID.
    pub fn deploy(&self, replica: &str, fields: &Value) -> String {
        let result = self.result(&self.ask(replica, fields));
        assert_eq!(result["status"], "running", "{result}");
        let container = result["container_id"].as_str().unwrap().to_owned();
        assert_eq!(self.engine.containers(replica), [container.as_str()]);
        container
    }

    /// Deploys, which has to fail with this code and leave nothing behind: the error.
    pub fn fail(&self, replica: &str, fields: &Value, code: &str) -> String {
        let result = self.result(&self.ask(replica, fields));
        assert_eq!((&result["status"], &result["code"]), (&json!("failed"), &json!(code)), "{result}");
        assert_eq!(self.engine.containers(replica), [""; 0], "something is left of {result}");
        let error = result["error"].as_str().unwrap().to_owned();
        assert!(!error.is_empty() && !error.contains('\n') && error.len() <= 400, "{error:?}");
        error
    }

    /// Stops, which has to succeed and leave nothing behind.
    pub fn stop(&self, replica: &str, fields: &Value) {
        let mut payload = fields.clone();
        payload["replica_id"] = json!(replica);
        let result = self.result(&self.send("stop", &payload));
        assert_eq!(result["status"], "stopped", "{result}");
        assert_eq!(self.engine.containers(replica), [""; 0]);
    }

    /// The answer to `logs` for a replica.
    pub fn logs(&self, replica: &str, tail: u64) -> Value {
        let mark = self.plane.mark();
        let request = format!("logs-{replica}-{tail}-{mark}");
        let body = json!({"replica_id": replica, "tail": tail, "request_id": request});
        self.plane.api_post(&format!("/nodes/{}/logs", self.id), &body);
        let answer = self.plane.wait_event_after(mark, WAIT, |event| event["type"] == "logs");
        assert_eq!(answer["payload"]["request_id"], request);
        answer["payload"].clone()
    }

    /// Waits until a replica has printed this.
    pub fn wait_printed(&self, replica: &str, text: &str) {
        wait_until(WAIT, "it is printed", || {
            let answer = self.logs(replica, 1000);
            answer["lines"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(text))
        });
    }

    /// The node, once it is as wanted.
    pub fn wait_node(&self, deadline: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        self.plane.wait_node(&self.id, deadline, wanted)
    }

    /// Kills the agent if it runs, and starts it again; returns when it has sent its first heartbeat.
    pub fn restart(&mut self) {
        self.agent.kill();
        let mark = self.plane.mark();
        self.agent = self.node.start();
        self.plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    }

    /// The events of this kind since the start: their payloads.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let all = self.plane.api_get("/events?since=0");
        let all = all["events"].as_array().unwrap();
        all.iter().filter(|event| event["type"] == kind).map(|event| event["payload"].clone()).collect()
    }

    /// How the newest heartbeat or news shows a replica.
    pub fn wait_status(&self, mark: u64, replica: &str, status: &str) {
        self.plane.wait_event_after(mark, WAIT, |event| {
            let containers = &event["payload"]["status"]["containers"];
            containers.as_array().is_some_and(|all| {
                all.iter().any(|one| one["replica_id"] == replica && one["status"] == status)
            })
        });
    }
}
