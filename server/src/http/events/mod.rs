//! `/api/v1/events`: everything a page watches on one stream of Server-Sent Events, because a browser keeps no more than
//! six connections to a host.
//!
//! `?watch=jobs,nodes,queues,job:j1,logs:j1,metrics:j1` names the topics. The id of an event says how far each of them
//! has got, so that `Last-Event-ID` resumes all of them without gap or repeat, over a restart of the service too. It stays
//! open when all of its topics have ended: a browser takes a stream that closes for one that broke, and comes back.

mod cursor;
mod curves;
mod topics;

pub(super) use curves::curves;

use super::params::Params;
use super::{Answer, Face, jobs, sweeps};
use crate::status;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use cursor::{Cursor, Topic};
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use topics::{Frame, Watch};

/// Topics of one stream.
const TOPICS: usize = 64;
/// Events on their way to one reader; a slow one holds up nothing but its own.
const FRAMES: usize = 4;
/// A silent stream says so often that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a reader waits before it comes back.
const RETRY: Duration = Duration::from_millis(500);
/// Points a series where nothing else is said.
const POINTS: usize = 1_000;
/// Most points a series.
const MOST_POINTS: usize = 20_000;

pub(super) async fn stream(State(face): State<Face>, headers: HeaderMap, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["watch", "points", "last_event_id"])?;
    let topics = topics(params.text("watch").unwrap_or("jobs,nodes,queues"))?;
    let cursor = start(&headers, &params)?;
    for topic in &topics {
        if let Some(job) = topic.job() {
            jobs::existing(&face, &job.to_string()).await?;
        }
        if let Some(sweep) = topic.sweep() {
            sweeps::existing(&face, sweep).await?;
        }
    }
    let points = points(&params)?.unwrap_or(POINTS);
    let (sender, receiver) = mpsc::channel(FRAMES);
    for topic in &topics {
        let from = cursor.get(topic);
        let watch =
            Watch { handle: face.handle.clone(), board: face.board.clone(), points, to: sender.clone() };
        tokio::spawn(watch.run(topic.clone(), from));
    }
    let names: Vec<String> = topics.iter().map(Topic::to_string).collect();
    let hello = json!({ "version": env!("CARGO_PKG_VERSION"), "watch": names });
    let hello = Event::default().event("hello").retry(RETRY).data(hello.to_string());
    let frames = ReceiverStream::new(receiver).chain(stream::pending());
    let frames = frames.take_until(face.shutdown.clone().cancelled_owned());
    // Only what is watched now goes on being counted.
    let mut cursor = cursor.of(&topics);
    let events = frames.map(move |Frame { topic, event, data, at }| {
        if let Some(at) = at {
            cursor.set(topic, at);
        }
        Event::default().event(event).id(cursor.to_string()).data(data)
    });
    let all = stream::iter([hello]).chain(events).map(Ok::<_, Infallible>);
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// What is to be watched, without repeats.
fn topics(text: &str) -> Result<Vec<Topic>, Status> {
    let topics: BTreeSet<Topic> = text
        .split(',')
        .map(|topic| {
            topic
                .trim()
                .parse()
                .map_err(|error: cursor::Unread| status::bad_field("watch", &error.to_string()))
        })
        .collect::<Result<_, _>>()?;
    if topics.len() > TOPICS {
        return Err(status::bad_field("watch", &format!("a stream has at most {TOPICS} topics")));
    }
    Ok(topics.into_iter().collect())
}

/// Where the reader was: a browser says it in a header, a page that asks for other topics in the address.
fn start(headers: &HeaderMap, params: &Params) -> Result<Cursor, Status> {
    let header = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?"));
    let id = header.or(params.text("last_event_id")).unwrap_or("");
    id.parse().map_err(|error: cursor::Unread| status::bad_field("Last-Event-ID", &error.to_string()))
}

/// What comes as a topic or as the id of an event; one that is read is written as it was.
pub(super) fn read_outside(text: &str) {
    let _ = topics(text);
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }
}

/// How many points a series may have.
pub(super) fn points(params: &Params) -> Result<Option<usize>, Status> {
    let wanted = format!("3 to {MOST_POINTS}");
    let points = params.get("points", &wanted)?;
    match points {
        Some(points) if !(3..=MOST_POINTS).contains(&points) => {
            Err(status::bad_field("points", &format!("`points` is {points}; it must be {wanted}")))
        }
        points => Ok(points),
    }
}
