//! The client's side of the control socket: find the server, send one request, read one answer.

use crate::failure::{Failure, Outcome};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where servers put their control sockets: the user's own place first.
pub fn socket_directories() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|d| !d.is_empty())
        .map(|d| PathBuf::from(d).join("brigade"));
    own.into_iter()
        .chain([PathBuf::from("/run/brigade")])
        .collect()
}

/// The socket of the named server, or of the only one running.
pub fn find(control: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(path) = control {
        return Ok(path.to_owned());
    }
    let directories = socket_directories();
    let mut live = live_sockets(&directories);
    match live.len() {
        1 => Ok(live.remove(0)),
        0 => Err(Failure::cannot(format!(
            "no running server found in {}; name its socket with --control PATH",
            join(&directories)
        ))),
        _ => Err(Failure::cannot(format!(
            "several servers are running; choose one with --control: {}",
            join(&live)
        ))),
    }
}

fn join(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|p| p.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn live_sockets(directories: &[PathBuf]) -> Vec<PathBuf> {
    let mut live: Vec<PathBuf> = directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|e| e == "sock") && UnixStream::connect(path).is_ok()
        })
        .collect();
    live.sort();
    live
}

/// Sends a request and gives the answer's JSON. `patience` bounds each wait for bytes; `None` waits for as long as it takes.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    patience: Option<Duration>,
) -> Outcome<Value> {
    request_with(socket, method, path, "", patience)
}

/// The same with a body.
pub fn request_with(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    patience: Option<Duration>,
) -> Outcome<Value> {
    let at =
        |error: io::Error| Failure::cannot(format!("control socket {}: {error}", socket.display()));
    let answer = exchange(socket, method, path, body, patience).map_err(at)?;
    let (status, body) = parse_answer(&answer).map_err(at)?;
    let value: Value = serde_json::from_slice(body)
        .map_err(|e| at(io::Error::other(format!("answer is no JSON: {e}"))))?;
    if status == 200 {
        return Ok(value);
    }
    let what = value
        .get("error")
        .and_then(Value::as_str)
        .unwrap_or("no reason given");
    Err(Failure::cannot(format!(
        "the server says: {what} ({method} {path}, status {status})"
    )))
}

fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    patience: Option<Duration>,
) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: brigade\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status and body of an HTTP/1.1 answer with `Content-Length`, which is all our server sends.
fn parse_answer(answer: &[u8]) -> io::Result<(u16, &[u8])> {
    let wrong = |what: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("answer is no HTTP: {what}"),
        )
    };
    let head_end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or_else(|| wrong("no end of headers"))?;
    let head =
        std::str::from_utf8(&answer[..head_end]).map_err(|_| wrong("headers are no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| wrong("no status"))?;
    let body = &answer[head_end + 4..];
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    match length {
        Some(length) => Ok((
            status,
            body.get(..length).ok_or_else(|| wrong("body cut off"))?,
        )),
        None => Ok((status, body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_at_its_length() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}rest";
        assert_eq!(parse_answer(answer).expect("parses"), (200, &b"{}"[..]));
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_never_a_panic() {
        for bad in [
            &b""[..],
            b"\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            b"\xff\xff\r\n\r\n",
        ] {
            assert!(parse_answer(bad).is_err(), "{bad:?}");
        }
    }
}
