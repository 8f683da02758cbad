//! The control API: HTTP/1.1 and JSON on a unix socket, on one thread of its own.
//!
//! It is outside what the cache exists for, so it runs on a library (axum on a current-thread tokio) that never touches the
//! data path: each request is a closure posted to the cache's thread. The socket is made before anything is opened, so
//! that a taken path is a refusal, and answers once the cache is open.

use crate::world::clear_dead_socket;
use crate::{Error, Handle};
use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio_io_timeout::TimeoutStream;

/// Calls that wait for the cache's thread at the same time; each takes a thread, and some may take long.
const CALLS_MAX: usize = 64;
/// Connections at the same time.
const CONNECTIONS_MAX: usize = 64;
/// The longest a request's head may take to come, on a connection that idles too; its body; and an answer until more of it is read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the longest body.
const BODY_MAX: usize = 1 << 20;
/// The longest a stopping server waits for its last answers to be read.
const GRACE: Duration = Duration::from_secs(2);

/// A bound socket on which nobody answers yet.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Binds it, for our own user only, and makes the directory it lies in.
    pub fn bind(path: &Path) -> Result<Socket, Error> {
        let at =
            |error: std::io::Error| Error::at(format!("control socket {}", path.display()), error);
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(at)?;
        }
        clear_dead_socket(path)?;
        let listener = UnixListener::bind(path).map_err(at)?;
        let socket = Socket {
            path: path.to_owned(),
            listener,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(at)?;
        socket.listener.set_nonblocking(true).map_err(at)?;
        Ok(socket)
    }

    /// Answers for `handle` from now on.
    pub fn answer(self, handle: Handle) -> Result<Control, Error> {
        let listener = self.listener.try_clone().map_err(Error::new)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("brigade-control".into())
            .spawn(move || run(listener, handle, stopped))
            .map_err(|e| Error::new(format!("no thread for the control socket: {e}")))?;
        Ok(Control {
            _socket: self,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The answering side; dropping it lets the last answers out and removes the socket.
pub struct Control {
    _socket: Socket,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(listener: UnixListener, handle: Handle, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(CALLS_MAX)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no control API"),
    };
    runtime.block_on(async move {
        let listener = match tokio::net::UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "no control API"),
        };
        let connections = GracefulShutdown::new();
        tokio::select! {
            () = accept(listener, router(handle), &connections) => {}
            _ = stopped => {}
        }
        let _ = tokio::time::timeout(GRACE, connections.shutdown()).await;
    });
    runtime.shutdown_timeout(GRACE);
}

/// Serves connections, at most [`CONNECTIONS_MAX`] at a time; more wait to be accepted.
async fn accept(
    listener: tokio::net::UnixListener,
    router: axum::Router,
    connections: &GracefulShutdown,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => TimeoutStream::new(stream),
            Err(error) => {
                // Descriptors may be free again later.
                tracing::warn!(%error, "the control socket accepts nothing");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        stream.set_write_timeout(Some(PATIENCE));
        let stream = TokioIo::new(Box::pin(stream));
        let served = connections.watch(http.serve_connection(stream, service.clone()));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection of the control socket ended");
            }
            drop(slot);
        });
    }
}

/// Takes the body in before anything is called: a client that stops in the middle of it is given up.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_MAX);
    match tokio::time::timeout(PATIENCE, body).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, body.into())).await,
        Ok(Err(error)) => failure(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()),
        Err(_) => failure(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
    }
}

fn router(handle: Handle) -> axum::Router {
    axum::Router::new()
        .route("/v1/status", get(status))
        .route("/v1/settings", get(settings).patch(set))
        .route("/v1/priority_stats", get(priority_stats))
        .route("/v1/clear_stats", post(clear_stats))
        .route("/v1/stop", post(stop))
        .route("/v1/gc", post(gc))
        .route("/v1/gc/pause", post(pause_gc))
        .route("/v1/gc/resume", post(resume_gc))
        .merge(crate::lifecycle::routes())
        .route("/v1/drain", post(drain))
        .route("/v1/drain/cancel", post(cancel_drain))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "no such resource") })
        .method_not_allowed_fallback(|| async {
            failure(StatusCode::METHOD_NOT_ALLOWED, "not with this method")
        })
        .layer(axum::middleware::from_fn(whole))
        .with_state(handle)
}

async fn status(State(handle): State<Handle>) -> Response {
    answer(move || handle.status()).await
}

async fn settings(State(handle): State<Handle>) -> Response {
    answer(move || handle.settings()).await
}

/// How long a change lasts.
#[derive(Deserialize)]
struct Lasting {
    /// It is noted in the configuration file.
    #[serde(default = "lasts")]
    keep: bool,
}

fn lasts() -> bool {
    true
}

/// The body is an object of keys with their values; `?keep=false` leaves the configuration file alone.
async fn set(State(handle): State<Handle>, Query(how): Query<Lasting>, body: Bytes) -> Response {
    let wanted = match wanted(&body) {
        Ok(wanted) => wanted,
        Err(what) => return failure(StatusCode::BAD_REQUEST, &what),
    };
    answer_or(StatusCode::BAD_REQUEST, move || {
        handle.set(wanted, how.keep)
    })
    .await
}

fn wanted(body: &[u8]) -> Result<Vec<(String, String)>, String> {
    let keys: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("no object of settings: {error}"))?;
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(keys
        .into_iter()
        .map(|(key, value)| (key, text(value)))
        .collect())
}

async fn priority_stats(State(handle): State<Handle>) -> Response {
    answer(move || handle.priorities()).await
}

async fn clear_stats(State(handle): State<Handle>) -> Response {
    answer(move || handle.clear_stats()).await
}

async fn stop(State(handle): State<Handle>) -> Response {
    answer(move || handle.stop().map(|()| json!({ "stopped": true }))).await
}

/// What keeps it from starting is the state of the sets, not a fault of the server.
async fn gc(State(handle): State<Handle>) -> Response {
    answer_or(StatusCode::CONFLICT, move || handle.gc()).await
}

async fn pause_gc(State(handle): State<Handle>) -> Response {
    answer(move || handle.pause_gc(true)).await
}

async fn resume_gc(State(handle): State<Handle>) -> Response {
    answer(move || handle.pause_gc(false)).await
}

async fn drain(State(handle): State<Handle>, body: Bytes) -> Response {
    match volume_of(&body) {
        Ok(volume) => {
            answer_or(StatusCode::CONFLICT, move || {
                handle.drain(volume.as_deref())
            })
            .await
        }
        Err(why) => failure(StatusCode::BAD_REQUEST, &why),
    }
}

async fn cancel_drain(State(handle): State<Handle>, body: Bytes) -> Response {
    match volume_of(&body) {
        Ok(volume) => {
            answer_or(StatusCode::CONFLICT, move || {
                handle.cancel_drain(volume.as_deref())
            })
            .await
        }
        Err(why) => failure(StatusCode::BAD_REQUEST, &why),
    }
}

/// The volume that a body names, which may be absent.
fn volume_of(body: &[u8]) -> Result<Option<String>, String> {
    if body.is_empty() {
        return Ok(None);
    }
    let wrong = || r#"expected nothing, or {"volume": NAME}"#.to_owned();
    let value: Value = serde_json::from_slice(body).map_err(|_| wrong())?;
    let object = value.as_object().ok_or_else(wrong)?;
    match object.get("volume") {
        Some(Value::String(name)) if object.len() == 1 => Ok(Some(name.clone())),
        None if object.is_empty() => Ok(None),
        _ => Err(wrong()),
    }
}

pub(crate) async fn answer(
    work: impl FnOnce() -> Result<Value, Error> + Send + 'static,
) -> Response {
    answer_or(StatusCode::INTERNAL_SERVER_ERROR, work).await
}

pub(crate) async fn answer_or(
    if_not: StatusCode,
    work: impl FnOnce() -> Result<Value, Error> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => failure(if_not, &error.to_string()),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

pub(crate) fn failure(status: StatusCode, what: &str) -> Response {
    (status, Json(json!({ "error": what }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_one_volume_or_none() {
        let of = |body: &str| volume_of(body.as_bytes());
        assert_eq!((of(""), of("{}")), (Ok(None), Ok(None)));
        assert_eq!(of(r#"{"volume": "a"}"#), Ok(Some("a".into())));
        for bad in [
            "x",
            "[]",
            r#"{"volume": 1}"#,
            r#"{"volume": "a", "b": 1}"#,
            r#"{"b": 1}"#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
