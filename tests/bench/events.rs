//! The events of deploys, from the command to the pong that confirms the result, on a core that has so many replicas
//! already: valgrind counts what [`vectorlay::core::Core::handle`] costs.

use vectorlay::types::ContainerId;

use crate::engine::{Container, Engine, Status};
use crate::rig::{Rig, Start};

pub fn run(replicas: usize, deploys: usize) {
    let mut engine = Engine::new();
    for n in 0..replicas {
        let container = Container {
            name: format!("replica-there-{n}"),
            replica: format!("there-{n}"),
            deploy: format!("d{n}"),
            spec: String::new(),
            image: "img:a".into(),
            memory_mib: 0,
            gpus: Vec::new(),
            status: Status::Up(i32::try_from(n).unwrap() + 1000),
            by_itself: false,
        };
        engine.containers.insert(ContainerId::new(&format!("{n:064x}")).unwrap(), container);
    }
    let mut rig = Rig::start(Start { engine, queue_limit: 64, ..Start::default() });
    rig.connect();
    // The table takes up what was found.
    rig.wait(crate::rig::SECOND * 15);
    assert!(rig.table.is_some() || replicas == 0, "the table was not saved");
    for n in 0..deploys {
        let (replica, request) = (format!("new-{n}"), format!("q{n}"));
        rig.deploy(&replica, &request);
        rig.pong();
        assert_eq!(rig.sent(), [format!("deploy_result {replica} running {request}")]);
    }
}
