//! Ranks that `sh` cannot play.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub fn run(args: &[String]) {
    match args[0].as_str() {
        "flood" => flood(args[1].parse().unwrap(), args[2].parse().unwrap()),
        "report-until-stop" => report_until_stop(),
        "eat" => eat(args[1].parse().unwrap()),
        other => panic!("{other}"),
    }
}

/// Lines of `width` bytes, `total` bytes in all.
fn flood(total: usize, width: usize) {
    let mut line = vec![b'x'; width];
    line.push(b'\n');
    let block = line.repeat((1 << 20) / line.len() + 1);
    let (mut out, mut left) = (std::io::stdout(), total);
    while left > 0 {
        out.write_all(&block).unwrap();
        left = left.saturating_sub(block.len());
    }
    out.flush().unwrap();
}

fn report_until_stop() {
    let stream = UnixStream::connect(std::env::var_os("PHALANX_SOCKET").unwrap()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for step in 1_u64.. {
        writeln!(
            &stream,
            "{{\"report\":{{\"step\":{step},\"metrics\":{{\"loss\":{}}}}}}}",
            1.0 / step as f64
        )
        .unwrap();
        let answer = answers.next().unwrap().unwrap();
        if answer.contains("\"stop\":true") {
            println!("stopping by itself");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn eat(mebibytes: usize) {
    let mut eaten = Vec::new();
    for _ in 0..mebibytes {
        eaten.push(vec![1_u8; 1 << 20]);
    }
    println!("ate {}", eaten.len());
}
