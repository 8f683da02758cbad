//! Every verb and flag, defined once: parsing, `--help`, completions, the manual page and `docs/cli.md` all come from here.
//!
//! A verb is listed when it works, not before.

use crate::size::parse_size;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "brigade",
    version,
    about = "A block cache in user space, compatible on disk with Linux bcache",
    long_about = "A block cache in user space, compatible on disk with Linux bcache.\n\n\
        DEV is a block device or a regular file, used as it is. SIZE takes 4096, 4k, 512K, 1M, 10G (powers of 1024). \
        Exit status: 0 fine, 1 could not do it, 2 usage; `check` has its own.",
    after_help = "Try it with nothing prepared:\n  brigade demo",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Flags {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Writes superblocks; devices given together are attached to each other
    Format(FormatFlags),
    /// Shows what a superblock says
    Show(ShowFlags),
    /// Opens cache and backing devices and serves their volumes until told to stop
    Serve(ServeFlags),
    /// Checks a cache set and its backing devices, and writes nothing
    Check(CheckFlags),
    /// Prints everything on a cache device, in the words of docs/format.md
    Dump(DumpFlags),
    /// Makes small files, caches between them under load, and verifies every byte
    Demo(DemoFlags),
    /// Shows what a running server is doing
    Status(StatusFlags),
    /// Shows or changes the settings of a running server
    Set(SetFlags),
    /// Attaches a device to the cache of a running server
    Attach(AttachFlags),
    /// Writes back what the cache has of a volume, which is then served without it
    Detach(DetachFlags),
    /// Makes, deletes, resizes and names volumes of a running server
    Volume(VolumeFlags),
    /// Has a running server collect its garbage, and waits for it
    Gc(GcFlags),
    /// Writes all dirty data back to the backing devices, in a running server or without one
    Drain(DrainFlags),
    /// Stops a running server in order
    Stop(StopFlags),
    /// Prints a completion script for a shell
    Completions(CompletionsFlags),
    /// Prints the manual page
    #[command(after_help = "Example:\n  brigade man | man -l -")]
    Man,
    /// Prints docs/cli.md
    #[command(hide = true)]
    CliReference,
    /// Prints docs/settings.md
    #[command(hide = true)]
    SettingsReference,
}

/// Flags of `format`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("devices").required(true).multiple(true).args(["cache", "backing"])),
    after_help = "Examples:\n  brigade format --cache /dev/nvme0n1p3 --backing /dev/sdb --mode writeback\n  \
        brigade format --create 1G --cache cache.img\n\n\
        A device that holds anything recognisable (a file system, a partition table, bcache) is refused without --force."
)]
pub struct FormatFlags {
    /// Device to become the cache (one per set)
    #[arg(long, value_name = "DEV")]
    pub cache: Vec<PathBuf>,
    /// Device to be cached; may be given several times
    #[arg(long, value_name = "DEV")]
    pub backing: Vec<PathBuf>,
    /// Unit of allocation on the cache, a power of two
    #[arg(long, value_name = "SIZE", default_value = "512k", value_parser = parse_size)]
    pub bucket_size: u64,
    /// Smallest unit of I/O, 512 to 4096 [default: 4096]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block_size: Option<u64>,
    /// Which clean buckets are reused first
    #[arg(long, value_enum, default_value = "lru")]
    pub replacement: Replacement,
    /// Discard buckets of the cache before they are reused
    #[arg(long)]
    pub discard: bool,
    /// Allow fewer than 513 buckets, down to 128: no kernel opens such a set
    #[arg(long)]
    pub small: bool,
    /// What the cache does with writes
    #[arg(long, value_enum, default_value = "writethrough")]
    pub mode: Mode,
    /// Where data starts on the backing device
    #[arg(long, value_name = "SIZE", default_value = "8k", value_parser = parse_size)]
    pub data_offset: u64,
    /// Name of the backing device, up to 32 bytes
    #[arg(long, value_name = "NAME", requires = "backing")]
    pub label: Option<String>,
    /// Make missing files, sparse, of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub create: Option<u64>,
    /// Overwrite whatever is there
    #[arg(long)]
    pub force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `show`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brigade show /dev/nvme0n1p3 /dev/sdb")]
pub struct ShowFlags {
    /// Devices to look at
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `serve`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("devices").required(true).multiple(true).args(["cache", "backing", "config"])),
    group(ArgGroup::new("frontends").required(true).multiple(true).args(["nbd", "config"])),
    after_help = "Examples:\n  brigade serve --cache /dev/nvme0n1p3 --backing /dev/sdb --nbd unix:/run/volume.sock\n  \
        brigade serve --backing disk.img --nbd tcp:127.0.0.1:10809\n  brigade serve --config /etc/brigade.toml\n\n\
        A configuration file has settings (docs/settings.md) in its sections cache_set and volumes, and in serve what flags say \
        otherwise: cache, backing, nbd, memory, mode, ack, engine, state_dir, control. Flags go before the file. `brigade set` keeps \
        changes in it.\n\n\
        Volumes are exported by their labels and as volumeN, N being the slot in the set. The default export, without a name, is the first volume \
        that there was, for good: while that is stopped, or once it is deleted, there is none.\n\n\
        One line starting with `ready` goes to standard output once requests are accepted. SIGTERM or SIGINT stops in \
        order; a second one ends the process at once. BRIGADE_LOG=debug (or off, error, warn, info) sets how much of its \
        log goes to standard error."
)]
pub struct ServeFlags {
    /// Cache device; alone it serves its flash volumes
    #[arg(long, value_name = "DEV")]
    pub cache: Vec<PathBuf>,
    /// Backing device; alone it is passed through
    #[arg(long, value_name = "DEV")]
    pub backing: Vec<PathBuf>,
    /// Serve NBD at unix:PATH or tcp:HOST:PORT; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = parse_nbd)]
    pub nbd: Vec<String>,
    /// Settings, and what is to be served unless flags say it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Cache mode from now on [default: what the backing device says]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Write nothing, anywhere
    #[arg(long)]
    pub read_only: bool,
    /// Serve backing devices whose cache set is not given without it: what that set has of them is void then, dirty data too
    #[arg(long, conflicts_with = "read_only")]
    pub run_anyway: bool,
    /// Memory of the server, about; what does not fit of the index is read when it is wanted [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// When a write is acknowledged: once it survives this process (memory), or once it is journalled [default: memory]
    #[arg(long, value_enum)]
    pub ack: Option<Ack>,
    /// How I/O is done [default: auto]
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Look for every bucket that is handed out in all lists, which is slow (kernel: expensive_debug_checks)
    #[arg(long)]
    pub expensive_checks: bool,
    /// Where the acknowledgement record lies; a memory file system [default: /dev/shm/brigade or /run/brigade]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Control socket [default: $XDG_RUNTIME_DIR/brigade/PID.sock or /run/brigade/PID.sock]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// Flags of `check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade check /dev/nvme0n1p3 /dev/sdb\n  brigade check cache.img disk.img --data --json\n\n\
        Exit status as that of fsck(8): 0 clean, 4 errors, 8 could not check, 16 usage. Nothing is repaired. A device in use \
        is not checked. Ids in parentheses are the rules of docs/format.md 11. Notes are what a crash leaves behind in a set \
        that is fine."
)]
pub struct CheckFlags {
    /// Cache device and backing devices of a set, in any order
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,
    /// Compare clean data with the backing devices as well
    #[arg(long)]
    pub data: bool,
    /// Memory for the keys of the journal, and again for the map of cached sectors [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Print notes and totals too
    #[arg(long)]
    pub verbose: bool,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `dump`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade dump cache.img\n  brigade dump cache.img --section btree --json"
)]
pub struct DumpFlags {
    /// Cache device
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value = "all")]
    pub section: Section,
    /// Print JSON, one object to a line
    #[arg(long)]
    pub json: bool,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brigade demo --seconds 5 --dir /var/tmp --keep")]
pub struct DemoFlags {
    /// Where to make the files [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How long to put it under load
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub seconds: u64,
    /// Keep the files
    #[arg(long)]
    pub keep: bool,
    /// How I/O is done
    #[arg(long, value_enum, default_value = "auto")]
    pub engine: Engine,
}

/// Flags of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brigade status --json")]
pub struct StatusFlags {
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade attach /dev/sdb\n  brigade attach disk.img --set 4f3c0e1a-0000-4000-8000-000000000001\n\n\
        The device has a superblock (`brigade format --backing`). One that is served without a cache goes on being served. One that was \
        in this set, and of which the set has newer data, gets that back. What is refused is not written to."
)]
pub struct AttachFlags {
    /// Backing device, served or not
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// Cache set [default: the one the device names, or the only one]
    #[arg(long, value_name = "UUID")]
    pub set: Option<String>,
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `detach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade detach volume0\n  brigade detach volume0 --cancel\n\n\
        Meanwhile and afterwards it is served. Ending this command does not end the detach. If the server ends first the device is \
        still attached, and nothing is lost; ask again."
)]
pub struct DetachFlags {
    /// Name, label or uuid of the volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Have it stay attached, if it still is
    #[arg(long)]
    pub cancel: bool,
    /// Ask for it and leave
    #[arg(long, conflicts_with = "cancel")]
    pub no_wait: bool,
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `volume`.
#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  brigade volume create 10G --label scratch\n  brigade volume resize scratch 20G\n  \
        brigade volume delete scratch"
)]
pub struct VolumeFlags {
    /// What to do with it.
    #[command(subcommand)]
    pub verb: VolumeVerb,
}

/// What to do with a volume.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Makes a volume that lives on the cache device only
    #[command(after_help = "Example:\n  brigade volume create 10G --label scratch")]
    Create(CreateFlags),
    /// Deletes a volume that lives on the cache device only, and all its data
    #[command(after_help = "Example:\n  brigade volume delete scratch")]
    Delete(OneVolumeFlags),
    /// Changes the size of such a volume, or notices that a backing device has grown
    #[command(
        after_help = "Examples:\n  brigade volume resize scratch 20G\n  brigade volume resize volume0"
    )]
    Resize(ResizeFlags),
    /// Gives a volume another label, under which it is exported
    #[command(after_help = "Example:\n  brigade volume label volume0 attic")]
    Label(LabelFlags),
    /// Ends serving a backing device; what is dirty of it stays in the cache, and `brigade attach` brings it back
    #[command(after_help = "Example:\n  brigade volume stop volume1")]
    Stop(OneVolumeFlags),
}

/// Which server, and how to answer.
#[derive(Debug, Args)]
pub struct ServerFlags {
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `volume create`.
#[derive(Debug, Args)]
pub struct CreateFlags {
    /// How large it looks; room is taken by what is written
    #[arg(value_name = "SIZE", value_parser = parse_size)]
    pub size: u64,
    /// Its label
    #[arg(long, value_name = "NAME", default_value = "")]
    pub label: String,
    /// Cache set [default: the only one]
    #[arg(long, value_name = "UUID")]
    pub set: Option<String>,
    /// Which server.
    #[command(flatten)]
    pub server: ServerFlags,
}

/// Flags of `volume delete` and `volume stop`.
#[derive(Debug, Args)]
pub struct OneVolumeFlags {
    /// Name, label or uuid of the volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Which server.
    #[command(flatten)]
    pub server: ServerFlags,
}

/// Flags of `volume resize`.
#[derive(Debug, Args)]
pub struct ResizeFlags {
    /// Name, label or uuid of the volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// How large it is to be; not needed where a backing device says it
    #[arg(value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
    /// It may become smaller: what lies behind the new end is gone
    #[arg(long)]
    pub shrink: bool,
    /// Which server.
    #[command(flatten)]
    pub server: ServerFlags,
}

/// Flags of `volume label`.
#[derive(Debug, Args)]
pub struct LabelFlags {
    /// Name, label or uuid of the volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// At most 32 bytes; nothing takes the label away
    #[arg(value_name = "LABEL")]
    pub label: String,
    /// Which server.
    #[command(flatten)]
    pub server: ServerFlags,
}

/// Flags of `set`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade set\n  brigade set sequential_cutoff=8M writeback_percent=20\n  \
        brigade set data.cache_mode=writeback cache_set.io_error_limit=20 --temporary\n\n\
        A key is the name of a setting, for all volumes or sets that have it, or has a volume's name, a uuid, `volumes` or \
        `cache_set` and a dot before it. Numbers beyond the range are cut to it, and the answer says so. docs/settings.md has all of \
        them. Without any, all are shown with their values."
)]
pub struct SetFlags {
    /// What to change; all or none is
    #[arg(value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, String)>,
    /// Leave the server's configuration file alone
    #[arg(long)]
    pub temporary: bool,
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `gc`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade gc\n  brigade gc --control /run/brigade/4711.sock --no-wait\n\n\
        Every node of the index is rewritten, so that buckets to which only old pointers lead can be reused. The server does \
        this by itself when it has to; meanwhile it serves as ever. Ending this command does not end the collection."
)]
pub struct GcFlags {
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Ask for it and leave
    #[arg(long)]
    pub no_wait: bool,
    /// Have it rest until it is resumed, moving of data too
    #[arg(long, conflicts_with_all = ["no_wait", "resume"])]
    pub pause: bool,
    /// Let it go on
    #[arg(long, conflicts_with = "no_wait")]
    pub resume: bool,
    /// Print what it did as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brigade drain volume0\n  brigade drain --cache /dev/nvme0n1p3 --backing /dev/sdb\n\n\
        A running server drains at full speed, whatever its settings say, and serves as ever; ending this command does not end \
        the drain, --cancel does. What is written meanwhile in writeback mode becomes dirty again; the drain is over when all that was \
        dirty when it began is written back, and says how much is dirty then: change the mode first if that is to be nothing. With --cache and --backing the set is \
        opened, drained and closed with nothing served; a signal stops that in order, and running it again goes on. Exit status 0 \
        says that all of that is written back."
)]
pub struct DrainFlags {
    /// Volume to drain [default: all]
    #[arg(value_name = "VOLUME", conflicts_with = "cache")]
    pub volume: Option<String>,
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH", conflicts_with = "cache")]
    pub control: Option<PathBuf>,
    /// Ask for it and leave
    #[arg(long, conflicts_with = "cache")]
    pub no_wait: bool,
    /// End a drain; what was written back stays so
    #[arg(long, conflicts_with_all = ["cache", "no_wait"])]
    pub cancel: bool,
    /// Cache device of a set that nobody serves
    #[arg(long, value_name = "DEV", requires = "backing")]
    pub cache: Vec<PathBuf>,
    /// Backing device of it; may be given several times
    #[arg(long, value_name = "DEV", requires = "cache")]
    pub backing: Vec<PathBuf>,
    /// Where the acknowledgement record of its last server lies [default: as for serve]
    #[arg(long, value_name = "DIR", requires = "cache")]
    pub state_dir: Option<PathBuf>,
    /// Print what it did as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `stop`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brigade stop --control /run/brigade/4711.sock")]
pub struct StopFlags {
    /// Control socket of the server [default: that of the one running server]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// Flags of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brigade completions bash > /etc/bash_completion.d/brigade")]
pub struct CompletionsFlags {
    /// Shell to complete for
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// What the cache does with writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// To cache and backing device at once
    Writethrough,
    /// To the cache first, to the backing device later
    Writeback,
    /// To the backing device only
    Writearound,
    /// No caching
    None,
}

/// Which clean buckets are reused first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Replacement {
    /// Least recently used
    Lru,
    /// Oldest
    Fifo,
    /// Any
    Random,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// Once it survives the death of this process
    Memory,
    /// Once its index entry is in the journal
    Journal,
}

/// How I/O is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// io_uring where the kernel lets us, threads elsewhere
    Auto,
    /// io_uring
    Uring,
    /// A pool of threads
    Threads,
}

/// A part of what is on a cache device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Superblock
    Superblock,
    /// Journal entries
    Journal,
    /// Priorities and generations
    Prios,
    /// UUID table
    Uuids,
    /// The tree, node by node
    Btree,
    /// What the buckets hold
    Buckets,
    /// All of it
    All,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// An address of `--nbd`.
pub fn parse_nbd(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => Ok(text.to_owned()),
        Some(("tcp", rest))
            if rest
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("expected unix:PATH or tcp:HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flag_definitions_are_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn every_listed_verb_has_an_example() {
        for verb in Flags::command()
            .get_subcommands()
            .filter(|v| !v.is_hide_set())
        {
            let help = verb
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Example"),
                "{} has no example",
                verb.get_name()
            );
        }
    }

    #[test]
    fn nbd_addresses_name_their_transport() {
        assert!(parse_nbd("unix:/x").is_ok() && parse_nbd("tcp:[::1]:10809").is_ok());
        assert!(
            parse_nbd("/x").is_err()
                && parse_nbd("tcp:host").is_err()
                && parse_nbd("unix:").is_err()
        );
    }
}
