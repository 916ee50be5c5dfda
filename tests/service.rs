//! `phalanx up` and the commands that talk to it: the contract, item by item.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;
use support::{Home, Service, ended, eventually, finish, is_alive, script, script_with, signal};

#[track_caller]
fn submit(home: &Home, file: &str, more: &[&str]) -> String {
    let ended = home.run(["submit", file].iter().chain(more)).expect(0);
    let id = ended.out();
    assert!(id.ends_with('\n') && id.lines().count() == 1, "the id alone: {id:?}");
    id.trim().to_owned()
}

#[test]
fn the_ready_line_says_where_it_is_and_it_ends_when_asked() {
    let home = Home::new();
    let service = Service::start(&home);
    assert!(service.grpc.starts_with("127.0.0.1:") && !service.grpc.ends_with(":0"));
    assert!(service.http.starts_with("http://127.0.0.1:"));
    assert_eq!(service.ready["data"], home.data().to_str().unwrap());
    let mode = std::fs::metadata(&service.token_file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(home.run(["token"]).expect(0).out().trim(), service.token());
    assert_ne!(home.run(["token", "--agent"]).expect(0).out().trim(), service.token());
    let nodes = home.run(["nodes", "--json"]).expect(0).json();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "the local node is there when the service is ready");
    assert_eq!((&nodes[0]["state"], &nodes[0]["cpus"]["total"]), (&Value::from("READY"), &Value::from(4)));
    assert!(nodes[0]["memory"]["total"].as_u64().unwrap() > 0);
    assert_eq!(service.stop(), 0);
    assert!(!home.data().join("service.json").exists());
    let gone = home.run(["nodes"]).expect(1);
    assert!(gone.err().contains("phalanx up"), "{}", gone.err());
}

#[test]
fn a_taken_folder_a_taken_port_and_a_foreign_address_are_refused() {
    let home = Home::new();
    let service = Service::start(&home);
    let second = home.run(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]).expect(1);
    assert!(
        second.err().contains("in use by process") && second.err().contains("--data"),
        "{}",
        second.err()
    );
    let other = Home::new();
    let taken = other.run(["up", "--grpc", &service.grpc, "--http", "127.0.0.1:0"]).expect(1);
    assert!(taken.err().contains(&service.grpc) && taken.err().contains("--grpc"), "{}", taken.err());
    let open = other.run(["up", "--grpc", "0.0.0.0:0"]).expect(2);
    assert!(open.err().contains("TLS"), "{}", open.err());
    other.run(["up", "--cpus", "many"]).expect(2);
}

#[test]
fn a_job_from_submit_to_its_end() {
    let home = Home::new();
    let _service = Service::start(&home);
    home.file("job.toml", &script("echo hello; echo problem >&2; exit 6"));
    let id = submit(&home, "job.toml", &[]);
    let followed = home.run(["logs", "-f", &id]).expect(0);
    assert_eq!((followed.out().as_str(), followed.err().as_str()), ("hello\n", "problem\n"));
    home.run(["wait", &id]).expect(6);
    let job = home.run(["wait", &id, "--json"]).expect(6).json();
    assert_eq!((&job["state"], &job["name"]), (&Value::from("FAILED"), &Value::from("job")));
    assert_eq!(home.run(["describe", &id, "--json"]).expect(0).json(), job);
    assert_eq!(home.run(["ps", "--json"]).expect(0).json(), Value::Array(vec![]));
    assert_eq!(home.run(["ps", "-a", "--json"]).expect(0).json().as_array().unwrap().len(), 1);
    let again = home.run(["cancel", &id]).expect(1);
    assert!(again.err().contains("FAILED"), "{}", again.err());
}

#[test]
fn run_uses_the_service_and_an_interrupt_only_detaches() {
    let home = Home::new();
    let service = Service::start(&home);
    assert_eq!(home.run(["run", "-q", "--", "echo", "over there"]).expect(0).out(), "over there\n");
    let mut command = home.phalanx(["run", "--", "sh", "-c", "echo started; sleep 60"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "started\n");
    signal(child.id(), "INT");
    let ended = finish(child).expect(130);
    for hint in ["phalanx logs -f j2", "phalanx cancel j2"] {
        assert!(ended.err().contains(hint), "{}", ended.err());
    }
    assert_eq!(home.run(["describe", "j2", "--json"]).expect(0).json()["state"], "RUNNING");
    home.run(["cancel", "j2"]).expect(0);
    let code = home.run(["wait", "j2"]).code;
    assert_ne!(code, 0);
    assert_eq!(home.run(["describe", "j2", "--json"]).expect(0).json()["state"], "CANCELLED");
    // By its address, with the token it made.
    let token = service.token_file.to_str().unwrap().to_owned();
    let elsewhere = Home::new();
    let args = ["ps", "-a", "--json", "--server", &service.grpc, "--token-file", &token];
    assert_eq!(elsewhere.run(args).expect(0).json().as_array().unwrap().len(), 2);
    elsewhere.file("wrong", "not the token");
    let refused = elsewhere.run(["ps", "--server", &service.grpc, "--token-file", "wrong"]).expect(1);
    assert!(refused.err().contains("token"), "{}", refused.err());
}

#[test]
fn what_waits_says_why_and_what_never_fits_is_refused() {
    let home = Home::new();
    let _service = Service::start(&home);
    home.file("job.toml", &script("sleep 60"));
    let first = submit(&home, "job.toml", &["--set", "gang.cpus=4"]);
    eventually("the first runs", Duration::from_secs(10), || {
        home.run(["describe", &first, "--json"]).json()["state"] == "RUNNING"
    });
    let second = submit(&home, "job.toml", &["--set", "gang.cpus=3"]);
    eventually("the second has a reason", Duration::from_secs(5), || {
        let why = home.run(["why", &second]).expect(0).out();
        why.contains("QUEUED") && why.contains('3')
    });
    let why = home.run(["why", &second, "--json"]).expect(0).json();
    assert!(!why["reason"]["code"].as_str().unwrap().is_empty());
    let never = home.run(["submit", "job.toml", "--set", "gang.cpus=5"]).expect(3);
    assert!(never.err().contains('5') && never.err().contains('4'), "{}", never.err());
    home.run(["check", "job.toml", "--plan", "--set", "gang.cpus=5"]).expect(3);
    let planned = home.run(["check", "job.toml", "--plan", "--json"]).expect(0).json()["plan"].clone();
    assert_eq!(
        (&planned["reason"]["code"], planned["placement"].as_array().unwrap().len()),
        (&"waiting_resources".into(), 0)
    );
    home.run(["cancel", &second]).expect(0);
    assert_eq!(home.run(["describe", &second, "--json"]).expect(0).json()["state"], "CANCELLED");
    home.run(["cancel", &first]).expect(0);
}

#[test]
fn pause_and_resume() {
    let home = Home::new();
    let _service = Service::start(&home);
    home.file(
        "job.toml",
        &script_with("grace = \"1s\"", "echo attempt $PHALANX_ATTEMPT; [ $PHALANX_ATTEMPT = 2 ] || sleep 60"),
    );
    let id = submit(&home, "job.toml", &[]);
    eventually("it runs", Duration::from_secs(10), || home.run(["logs", &id]).out() == "attempt 1\n");
    home.run(["pause", &id]).expect(0);
    eventually("it is paused", Duration::from_secs(15), || {
        home.run(["describe", &id, "--json"]).json()["state"] == "PAUSED"
    });
    home.run(["resume", &id]).expect(0);
    home.run(["wait", &id]).expect(0);
    assert_eq!(home.run(["logs", &id]).expect(0).out(), "attempt 1\nattempt 2\n");
}

#[test]
fn followers_get_over_a_killed_service_and_the_job_goes_on() {
    let home = Home::new();
    let service = Service::start(&home);
    home.file("job.toml", &script("for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done; exit 9"));
    let id = submit(&home, "job.toml", &[]);
    let spawn =
        |args: &[&str]| home.phalanx(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (logs, wait) = (spawn(&["logs", "-f", &id]), spawn(&["wait", &id]));
    eventually("it runs", Duration::from_secs(10), || home.run(["logs", &id]).out().contains("line 2"));
    service.kill();
    std::thread::sleep(Duration::from_millis(500));
    // On other ports: the followers find it by its folder.
    let _service = Service::start(&home);
    let wanted: String = (1..=8).map(|i| format!("line {i}\n")).collect();
    assert_eq!(finish(logs).expect(0).out(), wanted, "no line lost, none twice");
    finish(wait).expect(9);
    let job = home.run(["describe", &id, "--json"]).expect(0).json();
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "it was not run again");
}

#[test]
fn a_stopped_service_leaves_no_process() {
    let home = Home::new();
    let service = Service::start(&home);
    let pid_file = home.dir.path().join("pid");
    home.file(
        "job.toml",
        &script_with("grace = \"1s\"", &format!("echo $$ > {}; sleep 300", pid_file.display())),
    );
    submit(&home, "job.toml", &[]);
    eventually("the rank runs", Duration::from_secs(10), || {
        std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let rank: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(service.stop(), 0);
    assert!(!is_alive(rank));
    let folder = home.dir.path().to_str().unwrap().to_owned();
    eventually("no process names the folder", Duration::from_secs(5), || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        !processes.into_iter().any(|process| {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&folder)
        })
    });
}

#[test]
fn declared_gpus_are_given_whole() {
    let home = Home::new();
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "4", "--gpus", "2"];
    let _service = Service::start_with(&home, &args);
    let nodes = home.run(["nodes", "--json"]).expect(0).json();
    let gpus = nodes[0]["gpus"].as_array().unwrap();
    assert!(gpus.len() == 2 && gpus[0]["free"] == 1, "{nodes}");
    let set = ["run", "-q", "--set", "gang.gpus=1", "--", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"];
    let shown = home.run(set).expect(0).out();
    assert!(shown.len() > 3 && !shown.contains(','), "{shown}");
    assert_eq!(
        home.run(["run", "-q", "--", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"]).expect(0).out(),
        "[]\n"
    );
}

#[test]
fn without_a_local_node_jobs_wait_for_an_agent() {
    let home = Home::new();
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "0"];
    let service = Service::start_with(&home, &args);
    assert_eq!(home.run(["nodes", "--json"]).expect(0).json(), Value::Array(vec![]));
    home.file("job.toml", &script("echo $PHALANX_JOB on a node"));
    let id = submit(&home, "job.toml", &[]);
    home.file("join", &home.run(["token", "--agent"]).expect(0).out());
    let machine = Home::new();
    machine.file("wrong", "x");
    let join = |token: &str| {
        let token = home.dir.path().join(token);
        let args =
            ["agent", "--server", &service.grpc, "--name", "n1", "--cpus", "2", "--json", "--token-file"];
        machine.phalanx(args.iter().map(|arg| arg.to_string()).chain([token.to_str().unwrap().to_owned()]))
    };
    home.file("wrong", "x");
    assert_eq!(support::ended(&mut join("wrong")).code, 1);
    let mut agent = join("join").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(agent.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "{\"node\":\"n1\"}\n");
    home.run(["wait", &id]).expect(0);
    assert_eq!(home.run(["logs", &id]).expect(0).out(), format!("{id} on a node\n"));
    // The token that joins can do nothing else.
    let token = home.dir.path().join("join");
    home.run(["ps", "--server", &service.grpc, "--token-file", token.to_str().unwrap()]).expect(1);
    signal(agent.id(), "TERM");
    assert!(agent.wait().unwrap().success());
}

#[test]
fn http_asks_for_the_token_and_for_our_own_name() {
    let home = Home::new();
    let service = Service::start(&home);
    home.run(["run", "-q", "--", "true"]).expect(0);
    let host = service.http.strip_prefix("http://").unwrap();
    let token = service.token();
    let get = |path: &str, host: &str, more: &str| {
        service.http(&format!("GET {path} HTTP/1.1\nHost: {host}\nConnection: close\n{more}\n")).0
    };
    let bearer = format!("Authorization: Bearer {token}\n");
    assert_eq!(get("/healthz", host, ""), 200);
    for path in ["/readyz", "/metrics", "/", "/nowhere", "/api/v1/jobs"] {
        assert_eq!(get(path, host, ""), 401, "{path}");
        assert_eq!(get(path, host, "Authorization: Bearer x\n"), 401, "{path}");
    }
    assert_eq!(get("/readyz", host, &bearer), 200);
    assert_eq!(get("/nowhere", host, &bearer), 404);
    let port = host.split(':').nth(1).unwrap();
    assert_eq!(get("/readyz", &format!("localhost:{port}"), &bearer), 200);
    for foreign in ["evil.example", "10.0.0.1", "", "user@localhost", "127.0.0.1.evil.example"] {
        assert!(matches!(get("/readyz", foreign, &bearer), 400 | 403 | 421), "{foreign}");
    }
    let post = |more: &str| {
        let request = format!(
            "POST /api/v1/jobs HTTP/1.1\nHost: {host}\nConnection: close\n{bearer}{more}Content-Length: 2\n\n{{}}"
        );
        service.http(&request).0
    };
    assert_eq!(post("Content-Type: text/plain\n"), 415);
    assert_eq!(post("Content-Type: application/json\nOrigin: http://evil.example\n"), 403);
    assert_eq!(post("Content-Type: application/json\nOrigin: null\n"), 403);
    assert_eq!(post("Content-Type: application/json\nSec-Fetch-Site: cross-site\n"), 403);
}

#[test]
fn prometheus_reads_families_with_help_and_type() {
    let home = Home::new();
    let service = Service::start(&home);
    home.run(["run", "-q", "--", "true"]).expect(0);
    let host = service.http.strip_prefix("http://").unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\nHost: {host}\nConnection: close\nAuthorization: Bearer {}\n\n",
        service.token()
    );
    let (status, head, body) = service.http(&request);
    assert_eq!(status, 200);
    assert!(head.to_lowercase().contains("text/plain"));
    for line in ["phalanx_jobs{state=\"SUCCEEDED\"} 1", "phalanx_queue_length{queue=\"default\"} 0"] {
        assert!(body.lines().any(|got| got == line), "{line} is not in\n{body}");
    }
    for name in [
        "phalanx_node_cpus{",
        "phalanx_node_cpus_free{",
        "phalanx_node_gpus{",
        "phalanx_node_gpus_free{",
        "phalanx_job_start_seconds_bucket{",
        "phalanx_schedule_seconds_bucket{",
        "process_resident_memory_bytes ",
    ] {
        assert!(body.lines().any(|line| line.starts_with(name)), "{name} is not in\n{body}");
    }
    let families = |kind: &str| -> Vec<String> {
        let prefix = format!("# {kind} ");
        let lines = body.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let (helps, types) = (families("HELP"), families("TYPE"));
    assert_eq!(helps, types);
    assert!(
        types.iter().all(|name| name.starts_with("phalanx_") || name.starts_with("process_")),
        "{types:?}"
    );
    assert!(!body.contains("j1"), "no label holds an id");
}

#[test]
fn gpus_are_given_by_their_links_and_the_plan_says_which() {
    let home = Home::new();
    // Without a service the plan is for this machine.
    home.file("job.toml", &script_with("[gang]\nworkers = 1", "echo devices $CUDA_VISIBLE_DEVICES"));
    let here = home.run(["check", "job.toml", "--plan"]).expect(0).out();
    assert!(here.contains("would start at once on this machine") && here.contains(": rank 0"), "{here}");
    home.run(["check", "job.toml", "--plan", "--set", "gang.gpus=9999"]).expect(3);
    let node = ["--cpus", "4", "--gpus", "4", "--gpu-links", "pairs"];
    let _service = Service::start_with(
        &home,
        &[&["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"][..], &node].concat(),
    );
    home.file("hold.toml", &script("sleep 60"));
    let holds = submit(&home, "hold.toml", &["--set", "gang.gpus=1"]);
    eventually("the first runs", Duration::from_secs(10), || {
        home.run(["describe", &holds, "--json"]).json()["state"] == "RUNNING"
    });
    let two = ["--set", "gang.gpus=2"];
    let planned = home.run(["check", "job.toml", "--plan"].iter().chain(&two)).expect(0).out();
    assert!(planned.contains("would start at once") && planned.contains("rank 0 on GPU 2, 3"), "{planned}");
    assert_eq!(
        home.run(["ps", "--json"]).expect(0).json().as_array().unwrap().len(),
        1,
        "nothing was submitted"
    );
    let pair = submit(&home, "job.toml", &two);
    home.run(["wait", &pair]).expect(0);
    assert_eq!(home.run(["logs", &pair]).expect(0).out().trim(), "devices 2,3");
    home.run(["cancel", &holds]).expect(0);
}

#[test]
fn a_shell_completes_ids_and_names() {
    let home = Home::new();
    let service = Service::start(&home);
    home.file("job.toml", &script("sleep 60"));
    assert_eq!(submit(&home, "job.toml", &[]), "j1");
    let sweep = "[sweep]\nmetric = \"loss\"\ntrials = 1\n[search]\nkind = \"random\"\n\
                 [params]\nx = { kind = \"int\", low = 0, high = 9 }\n";
    home.file("sweep.toml", &format!("{}{sweep}", script_with("name = \"hunt\"", "sleep 60")));
    assert_eq!(submit(&home, "sweep.toml", &[]), "s1");
    let offered = |words: &[&str]| {
        let mut command = home.phalanx(["--", "phalanx"].iter().chain(words));
        let answer = ended(command.env("PHALANX_COMPLETE", "fish")).expect(0).out();
        answer.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for verb in ["wait", "logs", "metrics", "describe", "cancel", "why", "events", "export"] {
        let (ids, sweeps) = (offered(&[verb, ""]), offered(&[verb, "s"]));
        assert!(ids.iter().any(|line| line.starts_with("j1\t")), "{verb}: {ids:?}");
        assert!(sweeps.iter().any(|line| line.starts_with("s1\thunt ")), "{verb}: {sweeps:?}");
    }
    for verb in ["trials", "best"] {
        let found = offered(&[verb, ""]);
        assert!(found.iter().any(|line| line.starts_with("s1\t")), "{verb}: {found:?}");
        assert!(!found.iter().any(|line| line.starts_with("j1\t")), "{verb}: {found:?}");
    }
    assert_eq!(offered(&["drain", ""]).iter().filter(|line| line.ends_with("\tREADY")).count(), 1);
    // Without a service the records answer; where one is named that is not there, nobody does.
    drop(service);
    assert!(offered(&["trials", "s"]).iter().any(|line| line.starts_with("s1\t")));
    let mut command = home.phalanx(["--", "phalanx", "trials", "s"]);
    command.env("PHALANX_COMPLETE", "fish").env("PHALANX_SERVER", "127.0.0.1:1");
    assert_eq!(ended(&mut command).expect(0).out(), "");
}

#[test]
fn what_a_service_starts_is_of_its_own_file_also_where_that_was_replaced() {
    let home = Home::new();
    let program = home.dir.path().join("phalanx");
    std::fs::copy(env!("CARGO_BIN_EXE_phalanx"), &program).unwrap();
    let up = ["up", "--json", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "4"];
    let service = Service::of(home.program(&program, up));
    let other = home.file("other", "#!/bin/sh\nexit 9\n");
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&other, &program).unwrap();
    assert_eq!(home.run(["run", "--", "echo", "hi"]).expect(0).out(), "hi\n");
    home.file("rows.csv", "x,y\n1,2\n2,4\n3,6\n");
    // In a fork of its guard, and as a program of its own.
    for env in ["", "env = { MALLOC_ARENA_MAX = \"2\" }\n"] {
        let text = format!(
            "version = 1\n{env}[train]\nmodel = {{ kind = \"linear\" }}\nsteps = 1\nbatch_size = 3\n\
             data = {{ kind = \"csv\", path = \"rows.csv\", target = \"y\" }}\noptimizer = {{ kind = \"sgd\", lr = 0.1 }}\n"
        );
        let job = home.file("job.toml", &text);
        home.run(["run", job.to_str().unwrap()]).expect(0);
    }
    service.stop();
}
