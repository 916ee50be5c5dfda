//! Hostile clients beside honest ones: how long an honest request takes meanwhile.

use crate::support::{Home, Service, script};
use crate::{Client, report};
use phalanx_api::v1 as pb;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Hostile inputs a second.
const INPUTS: u64 = 1000;
/// Clients that send them.
const CLIENTS: u64 = 8;
/// For so long.
const LASTS: Duration = Duration::from_secs(10);
/// Between two honest requests.
const HONEST: Duration = Duration::from_millis(20);
/// Slow clients that are open at a time, of each hostile client.
const SLOW: usize = 64;

/// Sends hostile inputs to both ports and asks honestly beside them.
pub(crate) async fn bear() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let mut quiet = honest(&client, &service, LASTS / 4).await;
    report("an honest request, in peace", &mut quiet, 50.0);
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let ports = [service.grpc.clone(), service.http.strip_prefix("http://").unwrap().to_owned()];
    let attackers: Vec<_> = (0..CLIENTS)
        .map(|seed| {
            let (stop, sent, ports) = (stop.clone(), sent.clone(), ports.clone());
            std::thread::spawn(move || attack(seed, &ports, &stop, &sent))
        })
        .collect();
    let begun = Instant::now();
    let mut amid = honest(&client, &service, LASTS).await;
    let rate = sent.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for attacker in attackers {
        attacker.join().unwrap();
    }
    println!(
        "hostile inputs                 {rate:9.0} /s                               wanted: {INPUTS} /s"
    );
    report("an honest request, beside them", &mut amid, 50.0);
    let job = client.run(&script("true")).await;
    assert_eq!(job.state_name(), "SUCCEEDED", "it serves on");
    service.stop();
}

/// What honest requests take for some time, in milliseconds: a list over gRPC and one over HTTP on a connection of its own.
async fn honest(client: &Client, service: &Service, lasts: Duration) -> Vec<f64> {
    let host = service.http.strip_prefix("http://").unwrap();
    let token = service.token();
    let get = format!(
        "GET /api/v1/jobs HTTP/1.1\nHost: {host}\nAuthorization: Bearer {token}\nConnection: close\n\n"
    );
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < lasts {
        let asked = Instant::now();
        client.jobs.clone().list(client.request(pb::ListJobsRequest::default())).await.unwrap();
        took.push(asked.elapsed().as_secs_f64() * 1e3);
        let asked = Instant::now();
        assert_eq!(tokio::task::block_in_place(|| service.http(&get)).0, 200);
        took.push(asked.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(HONEST).await;
    }
    took
}

/// One client that never sends anything good, at its part of the rate.
fn attack(seed: u64, ports: &[String; 2], stop: &AtomicBool, sent: &AtomicU64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut slow = std::collections::VecDeque::new();
    let (begun, mut done) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // One that is refused, or cut while it writes, has been sent all the same.
        if let Ok(mut stream) = TcpStream::connect(&ports[(random % 2) as usize]) {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(&input(random));
            let _ = stream.read(&mut [0; 256]);
            if random.is_multiple_of(4) {
                slow.push_back(stream);
            }
            if slow.len() > SLOW {
                slow.pop_front();
            }
        }
        done += 1;
        sent.fetch_add(1, Ordering::Relaxed);
        let due = Duration::from_secs_f64(done as f64 * CLIENTS as f64 / INPUTS as f64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}

fn input(random: u64) -> Vec<u8> {
    let noise = |length: usize| {
        let mut state = random;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..length).map(step).collect::<Vec<u8>>()
    };
    match random >> 8 & 7 {
        0 => noise(4096),
        1 => format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(60_000)).into_bytes(),
        2 => format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(60_000)).into_bytes(),
        3 => b"GET / HTTP/1.1\r\nHo".to_vec(),
        4 => [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &noise(2048)].concat(),
        5 => b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        6 => b"GET /api/v1/events?watch=logs:j1 HTTP/1.1\r\nHost: evil.example\r\nLast-Event-ID: \0\r\n\r\n"
            .to_vec(),
        // Settings, then headers that do not end.
        _ => [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\xff\xff\x01\0\0\0\0\x01"[..],
            &noise(512),
        ]
        .concat(),
    }
}
