use super::*;
use phalanx_core::JobId;
use std::fs;

fn attempt(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), number: 1 }
}

fn gone() -> Happening {
    Happening::Gone { unreaped: String::new() }
}

fn line(bytes: &[u8]) -> pb::agent_event::Event {
    let line = bytes.to_vec();
    pb::agent_event::Event::Log(pb::LogChunk { rank: 0, stderr: false, line, partial: false, newline: true })
}

fn open(dir: &Path) -> (Outbox, LeftOver) {
    Outbox::open_for_boot(dir, "this boot").unwrap()
}

fn numbers(outbox: &Outbox) -> Vec<u64> {
    outbox.lock().queue.iter().map(|event| event.seq).collect()
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    files
}

#[test]
fn what_is_not_committed_is_there_after_a_restart_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, left) = open(dir.path());
    assert_eq!(left, LeftOver::default());
    outbox.say_all(attempt(1), [line(b"a"), line(b"\xff")]);
    outbox.say(attempt(1), &gone());
    outbox.say_all(attempt(2), [line(b"c")]);
    assert_eq!(outbox.ack(1), []);
    let id = outbox.id().to_owned();
    drop(outbox);
    let (outbox, left) = open(dir.path());
    assert_eq!(outbox.id(), id);
    assert_eq!(numbers(&outbox), [2, 3, 4]);
    assert_eq!(left, LeftOver { said: vec![attempt(1)], open: vec![attempt(2)] });
    assert_eq!(outbox.ack(4), [attempt(1)]);
    drop(outbox);
    let (outbox, _) = open(dir.path());
    assert!(outbox.is_empty());
    outbox.say(attempt(3), &gone());
    assert_eq!(numbers(&outbox), [5]);
}

#[test]
fn a_file_torn_at_any_byte_gives_what_was_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    let mut ends = vec![0];
    for number in 1..=4_u8 {
        outbox.say_all(attempt(1), [line(&[number; 5])]);
        ends.push(fs::metadata(&files(dir.path())[0]).unwrap().len());
    }
    drop(outbox);
    let path = files(dir.path())[0].clone();
    let whole = fs::read(&path).unwrap();
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let expected = ends.iter().filter(|&&end| end > 0 && end <= length as u64).count() as u64;
        let (outbox, _) = open(dir.path());
        assert_eq!(numbers(&outbox), (1..=expected).collect::<Vec<_>>(), "torn at {length}");
        outbox.say_all(attempt(1), [line(b"more")]);
        drop(outbox);
        let (outbox, _) = open(dir.path());
        assert_eq!(
            numbers(&outbox),
            (1..=expected + 1).collect::<Vec<_>>(),
            "torn at {length}, then written to"
        );
        drop(outbox);
        files(dir.path()).into_iter().for_each(|file| fs::remove_file(file).unwrap());
    }
}

#[test]
fn a_byte_that_changed_ends_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    outbox.say_all(attempt(1), [line(b"first")]);
    let end = fs::metadata(&files(dir.path())[0]).unwrap().len() as usize;
    outbox.say_all(attempt(1), [line(b"second")]);
    drop(outbox);
    let path = files(dir.path())[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[end + 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(numbers(&open(dir.path()).0), [1]);
}

#[test]
fn files_go_when_all_in_them_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    for _ in 0..40 {
        outbox.say_all(attempt(1), [line(&vec![7; 1 << 20])]);
    }
    assert!(files(dir.path()).len() >= 3);
    outbox.ack(39);
    assert!(files(dir.path()).len() <= 2, "{:?}", files(dir.path()));
    outbox.ack(40);
    let bytes: u64 = files(dir.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes < 1 << 10, "{bytes}");
    drop(outbox);
    let (outbox, _) = open(dir.path());
    outbox.say(attempt(1), &gone());
    assert_eq!(numbers(&outbox), [41]);
}

#[test]
fn after_another_start_of_the_machine_the_numbering_has_a_new_name() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    outbox.say_all(attempt(1), [line(b"a"), line(b"b"), line(b"c")]);
    outbox.ack(2);
    let id = outbox.id().to_owned();
    drop(outbox);
    let (outbox, _) = Outbox::open_for_boot(dir.path(), "the next boot").unwrap();
    assert_ne!(outbox.id(), id);
    assert_eq!(numbers(&outbox), [1]);
    drop(outbox);
    assert_eq!(numbers(&Outbox::open_for_boot(dir.path(), "the next boot").unwrap().0), [1]);
}

#[tokio::test]
async fn producers_wait_for_room_and_what_must_be_said_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    for _ in 0..64 {
        outbox.room().await;
        outbox.say_all(attempt(1), [line(&vec![7; 1 << 20])]);
    }
    let waited = tokio::time::timeout(Duration::from_millis(20), outbox.room()).await;
    assert!(waited.is_err());
    outbox.say(attempt(1), &gone());
    let waiting = tokio::time::timeout(Duration::from_secs(5), outbox.room());
    let (waited, done) = tokio::join!(waiting, async { outbox.ack(65) });
    assert!(waited.is_ok());
    assert_eq!(done, [attempt(1)]);
}

#[tokio::test]
async fn batches_are_bounded_and_news_wake_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    outbox.say_all(attempt(1), (0..10).map(|_| line(&[1; 1000])));
    let batch = outbox.after(0, 3000).await;
    assert!((2..=4).contains(&batch.len()), "{}", batch.len());
    assert_eq!(outbox.after(9, 1).await.len(), 1);
    let (news, ()) = tokio::join!(outbox.after(10, 1), async {
        tokio::task::yield_now().await;
        outbox.say(attempt(1), &gone());
    });
    assert_eq!(news[0].seq, 11);
}

#[test]
fn a_full_disk_leaves_the_outbox_in_memory_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path());
    outbox.say_all(attempt(1), [line(b"a")]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    outbox.lock().segments.active = Some((full, 0));
    outbox.say_all(attempt(1), [line(b"b")]);
    outbox.say(attempt(1), &gone());
    assert_eq!(numbers(&outbox), [1, 2, 3]);
    assert_eq!(numbers(&open(dir.path()).0), [1], "the rest is in memory only");
    outbox.lock().unwritten = Some((2, Instant::now()));
    outbox.say_all(attempt(2), [line(b"c")]);
    assert_eq!(numbers(&open(dir.path()).0), [1, 2, 3, 4]);
}
