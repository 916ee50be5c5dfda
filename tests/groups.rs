//! Standing placement groups with the real binary: made, used by jobs, kept over a kill, repaired, removed.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use phalanx_api::v1 as pb;
use phalanx_api::v1::cluster_client::ClusterClient;
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::Duration;
use support::{Home, Service, eventually, script_with, signal};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const LIMIT: Duration = Duration::from_secs(30);

fn group(home: &Home, name: &str) -> Value {
    home.run(["groups", "describe", name, "--json"]).expect(0).json()
}

fn submit(home: &Home, file: &str) -> String {
    home.run(["submit", file]).expect(0).out().trim().to_owned()
}

#[track_caller]
fn reaches(home: &Home, id: &str, state: &str) {
    eventually(&format!("{id} is {state}"), LIMIT, || {
        home.run(["describe", id, "--json"]).expect(0).json()["state"] == state
    });
}

fn nodes_of(group: &Value) -> Vec<String> {
    let bundles = group["bundles"].as_array().unwrap().iter();
    bundles.map(|bundle| bundle["node"].as_str().unwrap().to_owned()).collect()
}

fn free_cpus(home: &Home, node: &str) -> f64 {
    let nodes = home.run(["nodes", "--json"]).expect(0).json();
    let found = nodes.as_array().unwrap().iter().find(|found| found["name"] == node).cloned();
    found.map_or(-1.0, |node| node["cpus"]["free"].as_f64().unwrap())
}

#[test]
fn jobs_run_in_a_group_that_outlives_a_killed_service_and_end_with_it() {
    let home = Home::new();
    let service = Service::start(&home);
    home.file("pool.toml", "version = 1\nname = \"pool\"\n[gang]\nworkers = 2\ncpus = 1\n");
    let made = home.run(["groups", "create", "pool.toml", "--wait", "20s", "--json"]).expect(0).json();
    assert_eq!((&made["state"], nodes_of(&made).len()), (&Value::from("READY"), 2), "{made}");
    // The same again is the same; other content of the name is refused.
    home.run(["groups", "create", "pool.toml"]).expect(0);
    let other = home.run(["groups", "create", "pool.toml", "--set", "gang.workers=1"]).expect(1);
    assert!(other.err().contains("other content"), "{}", other.err());

    // Two jobs fill it, a third one waits for room in it, though the node has some.
    let rank = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";
    home.file("job.toml", &script_with("grace = \"2s\"\n[gang]\ngroup = \"pool\"", rank));
    let (first, second, third) =
        (submit(&home, "job.toml"), submit(&home, "job.toml"), submit(&home, "job.toml"));
    reaches(&home, &first, "RUNNING");
    reaches(&home, &second, "RUNNING");
    let why = home.run(["why", &third]).expect(0).out();
    assert!(why.contains("in the placement group `pool`") && why.contains("1 CPU"), "{why}");
    // What can never fit is refused, with the numbers; so is a group that is not there.
    let large =
        home.run(["run", "--set", "gang.group=pool", "--set", "gang.workers=3", "--", "true"]).expect(3);
    assert!(large.err().contains("2 CPU"), "{}", large.err());
    let unknown = home.run(["run", "--set", "gang.group=nope", "--", "true"]);
    assert!(unknown.code != 0 && unknown.err().contains("no placement group `nope`"), "{}", unknown.err());

    service.kill();
    let service = Service::start(&home);
    let again = group(&home, "pool");
    assert_eq!((&again["state"], &again["bundles"]), (&made["state"], &made["bundles"]));
    assert_eq!(
        home.run(["describe", &first, "--json"]).expect(0).json()["attempt"],
        1,
        "it was not run again"
    );
    home.run(["cancel", &first]).expect(0);
    reaches(&home, &third, "RUNNING");

    home.run(["groups", "remove", "pool"]).expect(0);
    reaches(&home, &second, "CANCELLED");
    reaches(&home, &third, "CANCELLED");
    home.run(["groups", "remove", "pool"]).expect(0);
    eventually("nothing is held", LIMIT, || {
        let nodes = home.run(["nodes", "--json"]).expect(0).json();
        nodes[0]["cpus"]["free"] == 4.0 || nodes[0]["cpus"]["free"] == 4
    });
    assert_eq!(home.run(["groups", "--json"]).expect(0).json(), Value::Array(vec![]));
    assert_eq!(service.stop(), 0);
    // At rest the records are read without a service.
    assert_eq!(home.run(["groups", "--json"]).expect(0).json(), Value::Array(vec![]));
}

/// An agent of a folder of its own.
struct Agent {
    home: Home,
    child: Child,
}

impl Agent {
    fn join(service_home: &Home, service: &Service, name: &str, cpus: &str) -> Agent {
        let home = Home::new();
        let token = service_home.file("join", &service_home.run(["token", "--agent"]).expect(0).out());
        let args = ["agent", "--server", &service.grpc, "--name", name, "--cpus", cpus, "--token-file"];
        let args = args.iter().map(ToString::to_string).chain([token.to_str().unwrap().to_owned()]);
        let child = home.phalanx(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Agent { home, child }
    }

    fn kill(mut self) -> Home {
        signal(self.child.id(), "KILL");
        self.child.wait().unwrap();
        self.home
    }
}

#[test]
fn a_lost_nodes_bundles_are_placed_again_before_what_waits() {
    let home = Home::new();
    let site = home.file("site.toml", "version = 1\nnode_timeout = \"5s\"\n");
    let site = site.to_str().unwrap();
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "1", "--config", site];
    let service = Service::start_with(&home, &args);
    let second = Agent::join(&home, &service, "n2", "2");
    eventually("n2 has joined", LIMIT, || free_cpus(&home, "n2") == 2.0);
    home.file(
        "wide.toml",
        "version = 1\nname = \"wide\"\n[gang]\nworkers = 2\ncpus = 1\nplacement = \"strict-spread\"\n",
    );
    let made = home.run(["groups", "create", "wide.toml", "--wait", "20s", "--json"]).expect(0).json();
    let kept = nodes_of(&made).into_iter().find(|node| node != "n2").unwrap();
    // Waits for the whole of a node like n2.
    home.file("large.toml", &script_with("priority = 100\n[gang]\ncpus = 2", "sleep 600"));
    let large = submit(&home, "large.toml");
    let _left = second.kill();
    eventually("the bundle on n2 is lost", LIMIT, || group(&home, "wide")["state"] == "REPAIRING");
    assert_eq!(
        nodes_of(&group(&home, "wide")),
        std::slice::from_ref(&kept),
        "only the lost one is placed again"
    );
    let third = Agent::join(&home, &service, "n3", "2");
    eventually("the group is whole again", LIMIT, || group(&home, "wide")["state"] == "READY");
    let mut nodes = nodes_of(&group(&home, "wide"));
    nodes.retain(|node| *node != kept);
    assert_eq!(nodes, ["n3"]);
    let waiting = home.run(["describe", &large, "--json"]).expect(0).json();
    assert_eq!(waiting["state"], "QUEUED", "the bundle went before it, whatever its priority");
    home.run(["groups", "remove", "wide"]).expect(0);
    reaches(&home, &large, "RUNNING");
    home.run(["cancel", &large]).expect(0);
    reaches(&home, &large, "CANCELLED");
    let _left = third.kill();
    service.stop();
}

struct Wire {
    cluster: ClusterClient<Channel>,
    token: String,
}

impl Wire {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        request
    }

    async fn create(
        &mut self,
        toml: &str,
        change: impl FnOnce(&mut pb::CreatePlacementGroupRequest),
    ) -> Result<pb::PlacementGroup, tonic::Status> {
        let mut request = pb::CreatePlacementGroupRequest { toml: toml.to_owned(), ..Default::default() };
        change(&mut request);
        let request = self.request(request);
        Ok(self.cluster.create_placement_group(request).await?.into_inner())
    }

    async fn list(
        &mut self,
        size: i32,
        token: &str,
    ) -> Result<pb::ListPlacementGroupsResponse, tonic::Status> {
        let page_token = token.to_owned();
        let request = pb::ListPlacementGroupsRequest { page_size: size, page_token, ..Default::default() };
        let request = self.request(request);
        Ok(self.cluster.list_placement_groups(request).await?.into_inner())
    }

    async fn remove(&mut self, name: &str) -> Result<pb::PlacementGroup, tonic::Status> {
        let request = pb::RemovePlacementGroupRequest { name: name.to_owned(), ..Default::default() };
        let request = self.request(request);
        Ok(self.cluster.remove_placement_group(request).await?.into_inner())
    }
}

#[test]
fn the_api_keeps_to_its_contract() {
    let home = Home::new();
    let service = Service::start(&home);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel =
            Endpoint::from_shared(format!("http://{}", service.grpc)).unwrap().connect().await.unwrap();
        let mut wire = Wire { cluster: ClusterClient::new(channel), token: service.token() };
        let file = |name: &str| format!("version = 1\nname = \"{name}\"\n[gang]\ncpus = 0.1\n");
        let code = |result: Result<pb::PlacementGroup, tonic::Status>| result.unwrap_err().code();

        // Nothing of a bad request happens.
        assert_eq!(code(wire.create("version = 1\n", |_| ()).await), Code::InvalidArgument);
        assert_eq!(code(wire.create(&file("a/b"), |_| ()).await), Code::InvalidArgument);
        let large = "version = 1\nname = \"l\"\n[gang]\ncpus = 64\n";
        assert_eq!(code(wire.create(large, |_| ()).await), Code::FailedPrecondition);
        assert_eq!(code(wire.create(large, |r| r.validate_only = true).await), Code::FailedPrecondition);
        let queue = format!("queue = \"nope\"\n{}", file("q"));
        assert_eq!(code(wire.create(&queue, |_| ()).await), Code::FailedPrecondition);
        let negative = prost_types::Duration { seconds: -1, nanos: 0 };
        assert_eq!(code(wire.create(&file("w"), |r| r.wait = Some(negative)).await), Code::InvalidArgument);
        let preview = wire.create(&file("v"), |r| r.validate_only = true).await.unwrap();
        assert_eq!(preview.state(), pb::placement_group::State::Pending);
        assert!(wire.list(0, "").await.unwrap().groups.is_empty());

        // A repeated request answers the first result, also when it is over.
        let wait = Some(prost_types::Duration { seconds: 20, nanos: 0 });
        let first = wire.create(&file("a"), |r| (r.request_id, r.wait) = ("x".into(), wait)).await.unwrap();
        assert_eq!((first.state(), first.bundles.len()), (pb::placement_group::State::Ready, 1));
        assert!(first.ready_time.is_some());
        let again = wire.create(&file("a"), |r| r.request_id = "x".into()).await.unwrap();
        assert_eq!(again.create_time, first.create_time);
        let other = wire.create(&file("b"), |r| r.request_id = "x".into()).await;
        assert_eq!(code(other), Code::AlreadyExists);
        assert_eq!(code(wire.create(&file("a").replace("0.1", "0.2"), |_| ()).await), Code::AlreadyExists);
        // The same name in another namespace is another group.
        wire.create(&format!("namespace = \"team\"\n{}", file("a")), |_| ()).await.unwrap();

        // Pages, the newest first.
        let page = wire.list(1, "").await.unwrap();
        assert_eq!((page.groups.len(), page.groups[0].namespace.as_str()), (1, "team"));
        let rest = wire.list(1, &page.next_page_token).await.unwrap();
        assert_eq!((rest.groups[0].namespace.as_str(), rest.next_page_token.as_str()), ("default", ""));
        assert_eq!(wire.list(1, "zz").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(wire.list(-1, "").await.unwrap_err().code(), Code::InvalidArgument);

        // Removed twice, and never there.
        wire.remove("a").await.unwrap();
        assert_eq!(wire.remove("a").await.unwrap().state(), pb::placement_group::State::Removed);
        assert_eq!(wire.remove("never").await.unwrap().state(), pb::placement_group::State::Removed);
        assert_eq!(code(wire.remove("").await), Code::InvalidArgument);
        let get = pb::GetPlacementGroupRequest { name: "a".into(), ..Default::default() };
        let request = wire.request(get);
        let gone = wire.cluster.get_placement_group(request).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound);
        let late = wire.create(&file("a"), |r| r.request_id = "x".into()).await.unwrap();
        assert_eq!(late.state(), pb::placement_group::State::Removed);
        // The name is free again at once.
        let fresh = wire.create(&file("a"), |r| r.wait = wait).await.unwrap();
        assert_eq!(fresh.state(), pb::placement_group::State::Ready);
        assert_ne!(fresh.create_time, first.create_time);
    });
    assert_eq!(service.stop(), 0);
}
