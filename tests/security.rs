//! Who gets in and what stays hidden: TLS, tokens, secrets, and the record of who did what.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Ended, Home, Service, ended, eventually, finish, script, script_with, signal};

/// Secrets are set through stdin.
fn set_secret(home: &Home, name: &str, value: &str) -> Ended {
    let mut command = home.phalanx(["secret", "set", name]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    finish(child)
}

fn has_text(folder: &Path, text: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(has_text(&path, text));
        } else if std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text)) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_secret_reaches_the_job_and_nothing_else() {
    let home = Home::new();
    let service = Service::start(&home);
    let value = "hunter22-and-more";
    let keys = "secrets = [\"MY_SECRET\"]";
    home.file(
        "job.toml",
        &script_with(keys, "echo is $MY_SECRET; echo $MY_SECRET >&2; [ ${#MY_SECRET} = 17 ]"),
    );
    let unknown = home.run(["submit", "job.toml"]).expect(2);
    assert!(
        unknown.err().contains("MY_SECRET") && unknown.err().contains("phalanx secret set"),
        "{}",
        unknown.err()
    );
    set_secret(&home, "MY_SECRET", &format!("{value}\n")).expect(0);
    assert_eq!(home.run(["secret", "list"]).expect(0).out(), "MY_SECRET\n");
    assert_eq!(home.run(["secret", "list", "--json"]).expect(0).json()[0]["name"], "MY_SECRET");
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    home.run(["wait", &id]).expect(0);
    let logs = home.run(["logs", &id]).expect(0);
    assert_eq!((logs.out().as_str(), logs.err().as_str()), ("is ***\n", "***\n"));
    for args in [
        &["describe", &id, "--json"][..],
        &["events", &id, "--json"],
        &["events", "--json"],
        &["describe", &id],
    ] {
        let shown = home.run(args).expect(0);
        assert!(!shown.out().contains(value), "{args:?}: {}", shown.out());
    }
    let file = home.data().join("secrets/MY_SECRET");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        has_text(&home.data(), value.as_bytes()),
        [file.display().to_string()],
        "in its own file alone"
    );
    // It outlives a kill, and goes when it is told to and nobody needs it.
    service.kill();
    let _service = Service::start(&home);
    home.file("long.toml", &script_with(keys, "sleep 60"));
    let long = home.run(["submit", "long.toml"]).expect(0).out().trim().to_owned();
    let used = home.run(["secret", "rm", "MY_SECRET"]).expect(1);
    assert!(used.err().contains(&long), "{}", used.err());
    home.run(["cancel", &long]).expect(0);
    home.run(["wait", &long]);
    home.run(["secret", "rm", "MY_SECRET"]).expect(0);
    assert!(!file.exists());
    home.run(["submit", "job.toml"]).expect(2);
    home.run(["secret", "rm", "MY_SECRET"]).expect(1);
    for (name, value) in
        [("1X", "long enough"), ("PHALANX_X", "long enough"), ("SHORT", "abc"), ("../x", "long enough")]
    {
        set_secret(&home, name, value).expect(2);
    }
}

#[test]
fn tls_is_made_by_itself_and_others_join_with_its_authority() {
    let home = Home::new();
    let args = ["--grpc", "0.0.0.0:0", "--http", "0.0.0.0:0", "--cpus", "1", "--tls", "auto"];
    let service = Service::start_with(&home, &args);
    let ca = service.ready["ca_file"].as_str().unwrap().to_owned();
    assert!(service.http.starts_with("https://0.0.0.0:"));
    for file in ["tls/ca-key.pem", "tls/key.pem"] {
        let mode = std::fs::metadata(home.data().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    // The local command line finds all of it by itself.
    assert_eq!(home.run(["run", "-q", "--", "echo", "hello"]).expect(0).out(), "hello\n");
    let port = service.grpc.rsplit(':').next().unwrap();
    let server = format!("127.0.0.1:{port}");
    let elsewhere = Home::new();
    let token = service.token_file.to_str().unwrap();
    let with = ["ps", "-a", "--json", "--server", &server, "--token-file", token, "--ca-file", &ca];
    assert_eq!(elsewhere.run(with).expect(0).json().as_array().unwrap().len(), 1);
    let by_name = format!("localhost:{port}");
    elsewhere.run(["ps", "--server", &by_name, "--token-file", token, "--ca-file", &ca]).expect(0);
    let plain = elsewhere.run(["ps", "--server", &server, "--token-file", token]).expect(1);
    assert!(plain.err().contains("--ca-file"), "{}", plain.err());
    let other = Home::new();
    other.run(["cert", "tls", "--host", "127.0.0.1"]).expect(0);
    let wrong = other.dir.path().join("tls/ca.pem");
    let args = ["ps", "--server", &server, "--token-file", token, "--ca-file", wrong.to_str().unwrap()];
    let refused = elsewhere.run(args).expect(1);
    assert!(refused.err().contains("vouch"), "{}", refused.err());
    // An agent joins over TLS; one that trusts somebody else does not.
    home.file("join", &home.run(["token", "--agent"]).expect(0).out());
    let join = home.dir.path().join("join");
    let agent = |ca: &str| {
        let mut command =
            elsewhere.phalanx(["agent", "--name", "n2", "--cpus", "1", "--json", "--server", &server]);
        command.args(["--token-file", join.to_str().unwrap(), "--ca-file", ca]);
        command
    };
    assert_eq!(ended(&mut agent(wrong.to_str().unwrap())).code, 1);
    let mut joined = agent(&ca).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(joined.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"node\":\"n2\"}\n");
    eventually("it is a node", Duration::from_secs(10), || {
        home.run(["nodes", "--json"]).expect(0).json().as_array().unwrap().len() == 2
    });
    signal(joined.id(), "TERM");
    assert!(joined.wait().unwrap().success());
    // HTTP speaks it too.
    let http = service.http.replace("0.0.0.0", "127.0.0.1");
    if let Ok(curl) = Command::new("curl").args(["-sS", "--cacert", &ca, &format!("{http}/healthz")]).output()
    {
        assert_eq!(String::from_utf8_lossy(&curl.stdout), "ok\n", "{curl:?}");
        let login = format!("{http}/?token={}", service.token());
        let curl = Command::new("curl").args(["-sSi", "--cacert", &ca, &login]).output().unwrap();
        let head = String::from_utf8_lossy(&curl.stdout).to_lowercase();
        assert!(head.contains("303") && head.contains("; secure"), "{head}");
    }
}

#[test]
fn a_certificate_of_ones_own() {
    let home = Home::new();
    home.run(["cert", "tls", "--host", "127.0.0.1", "--host", "localhost"]).expect(0);
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "1"];
    let own = ["--tls-cert", "tls/cert.pem", "--tls-key", "tls/key.pem", "--ca-file", "tls/ca.pem"];
    let service = Service::start_with(&home, &[&args[..], &own].concat());
    assert!(service.ready["ca_file"].as_str().unwrap().ends_with("tls/ca.pem"));
    home.run(["run", "-q", "--", "true"]).expect(0);
    let other = Home::new();
    home.run(["up", "--grpc", "0.0.0.0:0"]).expect(2);
    other.run(["up", "--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"]).expect(1);
    other.run(["up", "--tls-cert", "nowhere.pem"]).expect(2);
}

#[test]
fn a_new_token_shuts_the_old_one_out_under_way() {
    let home = Home::new();
    let service = Service::start(&home);
    let old = service.token();
    home.file("old", &old);
    home.file("job.toml", &script("sleep 60"));
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    let old_file = home.dir.path().join("old");
    let with_old = |args: &[&str]| {
        let old = ["--server", &service.grpc, "--token-file", old_file.to_str().unwrap()];
        home.phalanx(args.iter().copied().chain(old))
    };
    assert_eq!(ended(&mut with_old(&["ps"])).code, 0);
    let follower =
        with_old(&["logs", "-f", &id]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let host = service.http.strip_prefix("http://").unwrap();
    let mut page = std::net::TcpStream::connect(host).unwrap();
    let head = format!("GET /api/v1/events HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {old}\r\n\r\n");
    page.write_all(head.as_bytes()).unwrap();
    page.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let new = home.run(["token", "--rotate"]).expect(0).out();
    let mut told = String::new();
    page.read_to_string(&mut told).expect("the page's stream ends with the token");
    assert!(told.contains("event: hello") || told.contains("event:hello"), "{told}");
    assert_ne!(new.trim(), old);
    assert_eq!(service.token(), new.trim());
    let cut = finish(follower);
    assert!(cut.code != 0 && cut.err().contains("token"), "{}: {}", cut.code, cut.err());
    assert_eq!(ended(&mut with_old(&["ps"])).code, 1);
    home.run(["ps"]).expect(0);
    let get = |token: &str| {
        let head = format!("GET /api/v1/jobs HTTP/1.0\nHost: {host}\nAuthorization: Bearer {token}\n\n");
        service.http(&head).0
    };
    assert_eq!((get(&old), get(new.trim())), (401, 200));
    home.run(["cancel", &id]).expect(0);
    let events = home.run(["events", "user", "--json"]).expect(0).json_lines();
    assert_eq!(events[0]["action"], "token.rotate");
    drop(service);
    // Without a service too.
    let newer = home.run(["token", "--rotate"]).expect(0).out();
    assert_eq!(home.run(["token"]).expect(0).out(), newer);
}

#[test]
fn the_local_command_line_is_known_by_its_user() {
    let home = Home::new();
    let service = Service::start(&home);
    let socket = home.data().join("phalanx.sock");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    // Without the token's file: nothing of it is asked for.
    std::fs::rename(&service.token_file, home.dir.path().join("token")).unwrap();
    home.file("job.toml", &script("true"));
    assert_eq!(home.run(["submit", "job.toml"]).expect(0).out(), "j1\n");
    home.run(["wait", "j1"]).expect(0);
    let by_address = home.run(["ps", "--server", &service.grpc]).expect(1);
    assert!(by_address.err().contains("token"), "{}", by_address.err());
    // Another user is not let in, whatever the file's mode says.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    for folder in [home.dir.path().to_owned(), home.data()] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let knock = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
try:
    s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print('in' if s.recv(9) else 'out')
except OSError:
    print('out')";
    let python = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        ended(command.args(args).args(["-c", knock]).arg(&socket))
    };
    assert_eq!(python("python3", &[]).expect(0).out(), "in\n");
    // Only root can become somebody else.
    if nix::unistd::geteuid().is_root() {
        let nobody = python("setpriv", &["--reuid=65534", "--clear-groups", "/usr/bin/python3"]);
        let answer = nobody.expect(0).out();
        assert_eq!(answer, "out\n");
    }
    // It goes with the service; what a killed one leaves behind is replaced.
    service.kill();
    assert!(socket.exists());
    let service = Service::start(&home);
    assert_eq!(mode(&socket), 0o600);
    home.run(["ps"]).expect(0);
    assert_eq!(service.stop(), 0);
    assert!(!socket.exists());
}

#[test]
fn events_say_who_did_what_and_a_drained_node_takes_nothing_new() {
    let home = Home::new();
    let service = Service::start(&home);
    let node = home.run(["nodes", "--json"]).expect(0).json()[0]["name"].as_str().unwrap().to_owned();
    home.file("job.toml", &script("echo hello"));
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    home.run(["wait", &id]).expect(0);
    let events = home.run(["events", &id, "--json"]).expect(0).json_lines();
    let said: Vec<(&str, &str)> = events
        .iter()
        .map(|event| (event["actor"].as_str().unwrap(), event["action"].as_str().unwrap()))
        .collect();
    for wanted in [
        ("user", "job.submit"),
        ("service", "job.queued"),
        ("service", "job.running"),
        ("service", "job.succeeded"),
    ] {
        assert!(said.contains(&wanted), "{wanted:?} is not in {said:?}");
    }
    let numbers: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let joined = home.run(["events", &node, "--json"]).expect(0).json_lines();
    assert_eq!(
        (&joined[0]["actor"], &joined[0]["action"]),
        (&Value::from("agent"), &Value::from("node.join"))
    );
    assert_eq!(home.run(["drain", &node, "--json"]).expect(0).json()["state"], "DRAINING");
    let waits = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(home.run(["describe", &waits, "--json"]).expect(0).json()["state"], "QUEUED");
    // It is remembered.
    service.kill();
    let service = Service::start(&home);
    eventually("it is back", Duration::from_secs(10), || {
        home.run(["nodes", "--json"]).expect(0).json()[0]["state"] == "DRAINING"
    });
    home.run(["drain", &node, "--undo"]).expect(0);
    home.run(["wait", &waits]).expect(0);
    home.run(["drain", "nowhere"]).expect(1);
    // They can be read without a service, and followed with one.
    let mut follower =
        home.phalanx(["events", "-f", "--json", "--tail", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().is_ok());
    home.run(["run", "-q", "--", "true"]).expect(0);
    assert!(lines.next().unwrap().unwrap().contains("job."));
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(service.stop(), 0);
    let actions = home.run(["events", &node, "--json"]).expect(0).json_lines();
    assert!(actions.iter().any(|event| event["action"] == "node.drain" && event["actor"] == "user"));
}
