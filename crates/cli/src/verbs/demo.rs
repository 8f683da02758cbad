//! `brigade demo`: the main job with nothing to prepare.
//!
//! It makes a cache and a backing file, formats and serves them in this process, puts a mixed load on the volume, stops,
//! opens again, and compares every byte with what was written. Every read under load is compared as well.

mod load;
#[cfg(test)]
mod tests;

use crate::failure::{Failure, Outcome};
use crate::flags::{DemoFlags, FormatFlags, Mode, Replacement};
use crate::output::say;
use crate::size::show_size;
use crate::verbs::format;
use brigade::{Builder, CacheMode, Handle};
use indicatif::{ProgressBar, ProgressStyle};
use load::Model;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CACHE_BYTES: u64 = 64 << 20;
const BACKING_BYTES: u64 = 256 << 20;
const BUCKET_BYTES: u64 = 64 << 10;
const DATA_OFFSET_BYTES: u64 = 8 << 10;

/// Runs the whole story.
pub fn demo(flags: &DemoFlags) -> Outcome {
    let files = Files::make(flags)?;
    say!(
        "Brigade demo: a {} cache before a {} device, {} s of load.",
        show_size(CACHE_BYTES),
        show_size(BACKING_BYTES),
        flags.seconds
    )?;
    say!("1. Files in {}, made and formatted.", files.dir.display())?;
    let mut model = Model::new((BACKING_BYTES - DATA_OFFSET_BYTES) / load::BLOCK_BYTES);
    prepare(&files, &model)?;

    let handle = open(flags, &files, true)?;
    crate::log::start();
    say!(
        "2. Serving in writeback mode (I/O by {}), also at {}.",
        handle.engine_name(),
        handle.addresses().join(" ")
    )?;
    let is_interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let armed =
            signal_hook::flag::register_conditional_shutdown(signal, 1, is_interrupted.clone());
        armed
            .and_then(|_| signal_hook::flag::register(signal, is_interrupted.clone()))
            .map_err(Failure::cannot)?;
    }
    say!(
        "3. Load: reads and writes of 4k to 128k, most of them to a tenth of the volume; every read is compared."
    )?;
    let totals = under_load(flags, &handle, &mut model, &is_interrupted)?;
    say!(
        "   {} reads, {} writes, {} flushes, {} compared.",
        totals.reads,
        totals.writes,
        totals.flushes,
        show_size(totals.bytes_compared)
    )?;
    show_cache(&handle.status().map_err(Failure::cannot)?)?;
    handle.stop().map_err(Failure::cannot)?;
    drop(handle);

    say!("4. Stopped in order; opening again and comparing every byte.")?;
    let handle = open(flags, &files, false)?;
    let bytes = load::verify(&handle, &model).map_err(Failure::cannot)?;
    handle.stop().map_err(Failure::cannot)?;
    say!("   {} compared: all as written.", show_size(bytes))?;
    files.say_what_next()
}

/// The demo's two files, removed at the end unless they are to stay.
struct Files {
    dir: PathBuf,
    cache: PathBuf,
    backing: PathBuf,
    keep: bool,
    _temporary: Option<tempfile::TempDir>,
}

impl Files {
    fn make(flags: &DemoFlags) -> Outcome<Files> {
        let mut temporary = None;
        let dir = match &flags.dir {
            Some(dir) => dir.clone(),
            None => {
                let mut made = tempfile::Builder::new()
                    .prefix("brigade-demo-")
                    .tempdir()
                    .map_err(|e| Failure::cannot(format!("temporary directory: {e}")))?;
                made.disable_cleanup(flags.keep);
                let path = made.path().to_owned();
                temporary = Some(made);
                path
            }
        };
        let (cache, backing) = (dir.join("demo-cache.img"), dir.join("demo-backing.img"));
        if let Some(taken) = [&cache, &backing].into_iter().find(|path| path.exists()) {
            return Err(Failure::cannot(format!(
                "{}: exists; nothing written",
                taken.display()
            )));
        }
        for (path, bytes) in [(&cache, CACHE_BYTES), (&backing, BACKING_BYTES)] {
            make_file(path, bytes)
                .map_err(|e| Failure::cannot(format!("{}: {e}", path.display())))?;
        }
        Ok(Files {
            dir,
            cache,
            backing,
            keep: flags.keep,
            _temporary: temporary,
        })
    }

    fn say_what_next(&self) -> Outcome {
        say!("\nWhat to try next:")?;
        if self.keep {
            let (cache, backing) = (self.cache.display(), self.backing.display());
            say!("  brigade show {cache} {backing}")?;
            say!("  brigade dump {cache} --section journal")?;
            say!("  brigade serve --cache {cache} --backing {backing} --nbd unix:/tmp/demo.sock")?;
        } else {
            say!("  brigade demo --keep                     keeps the files, to look at them")?;
            say!("  brigade format --help                   devices of your own")?;
        }
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.cache);
            let _ = std::fs::remove_file(&self.backing);
        }
    }
}

/// Never somebody else's file.
fn make_file(path: &Path, bytes: u64) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?
        .set_len(bytes)
}

fn prepare(files: &Files, model: &Model) -> Outcome {
    load::fill(&files.backing, DATA_OFFSET_BYTES, model)
        .map_err(|e| Failure::cannot(format!("{}: {e}", files.backing.display())))?;
    let flags = FormatFlags {
        cache: vec![files.cache.clone()],
        backing: vec![files.backing.clone()],
        bucket_size: BUCKET_BYTES,
        block_size: None,
        replacement: Replacement::Lru,
        discard: false,
        small: false,
        mode: Mode::Writeback,
        data_offset: DATA_OFFSET_BYTES,
        label: Some("demo".into()),
        create: None,
        force: true,
        json: false,
    };
    format::plan(&flags)?.write()
}

fn open(flags: &DemoFlags, files: &Files, with_frontend: bool) -> Outcome<Handle> {
    let mut builder = Builder::new()
        .cache(&files.cache)
        .backing(&files.backing)
        .mode(CacheMode::Writeback)
        .memory_bytes(64 << 20)
        .engine(flags.engine.into());
    if with_frontend {
        builder = builder.nbd(format!(
            "unix:{}",
            files.dir.join("demo-nbd.sock").display()
        ));
    }
    builder.open().map_err(Failure::cannot)
}

fn under_load(
    flags: &DemoFlags,
    handle: &Handle,
    model: &mut Model,
    is_interrupted: &AtomicBool,
) -> Outcome<load::Totals> {
    let duration = Duration::from_secs(flags.seconds);
    let is_done = AtomicBool::new(false);
    let progress = Progress::new(flags.seconds);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| load::run(handle, model, duration, &is_done));
        let start = Instant::now();
        while !worker.is_finished() {
            std::thread::sleep(Duration::from_millis(100));
            if is_interrupted.load(Ordering::Relaxed) {
                is_done.store(true, Ordering::Relaxed);
            }
            progress.show(start.elapsed(), handle);
        }
        progress.end();
        worker
            .join()
            .map_err(|_| Failure::cannot("the load's thread died"))?
            .map_err(Failure::cannot)
    })
}

/// A bar on a terminal, a line every two seconds elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    seconds: u64,
    lines: std::cell::Cell<u64>,
}

impl Progress {
    fn new(seconds: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("   [{bar:30}] {pos}/{len} s  {msg}");
            ProgressBar::new(seconds)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress {
            bar,
            seconds,
            lines: std::cell::Cell::new(0),
        }
    }

    fn show(&self, elapsed: Duration, handle: &Handle) {
        let seconds = elapsed.as_secs().min(self.seconds);
        let line = || {
            handle
                .status()
                .map(|status| summary(&status))
                .unwrap_or_default()
        };
        if let Some(bar) = &self.bar {
            bar.set_position(seconds);
            bar.set_message(line());
        } else if seconds / 2 > self.lines.get() {
            self.lines.set(seconds / 2);
            let _ = say!("   {seconds}/{} s  {}", self.seconds, line());
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

fn summary(status: &Value) -> String {
    let volume = &status["volumes"][0];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (hits, misses) = (
        number(&volume["reads"]["hits"]),
        number(&volume["reads"]["misses"]),
    );
    let share = (hits * 100).checked_div(hits + misses).unwrap_or(0);
    format!(
        "hits {hits}, misses {misses} ({share}% hits), dirty {}",
        show_size(number(&volume["dirty_bytes"]))
    )
}

fn show_cache(status: &Value) -> Outcome {
    say!("   What the cache did: {}.", summary(status))?;
    for line in crate::verbs::status::text(status).lines() {
        say!("     {line}")?;
    }
    Ok(())
}
