//! The control socket, without a process for each question.

use crate::process::{Context, Result};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

/// One request; what is refused is an error with what the server said.
pub fn ask(control: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let mut socket = UnixStream::connect(control).context("control socket")?;
    socket
        .set_read_timeout(Some(TIMEOUT))
        .context("control socket")?;
    let body = body.map_or(String::new(), Value::to_string);
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    socket
        .write_all(request.as_bytes())
        .context("control socket")?;
    let mut answer = String::new();
    socket
        .read_to_string(&mut answer)
        .context("control socket")?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let first = head.lines().next().unwrap_or_default();
    if !first.contains(" 200") {
        return Err(format!("{method} {path}: {first}: {body}"));
    }
    serde_json::from_str(body).context(format!("{method} {path}"))
}
