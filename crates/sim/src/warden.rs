//! Who changes what is served while clients work: devices are attached, detached, grown, relabelled and let go of, flash volumes made,
//! resized and deleted. What was acknowledged is noted in the [`Register`].
//!
//! Requests may fail only while their volume is taken away or made smaller, and only by saying so (`Ledger::excuse`). An operation may fail
//! if devices do, if the server is being stopped, if the set has no bucket for its table, or if it was cancelled.

use crate::exec::{Chance, World};
use crate::register::{Bond, Known, Register};
use crate::set::{Backing, Set};
use crate::work::Clients;
use brigade_engine::{DetachStatus, Error, ErrorKind, Server, Volume};
use brigade_env::{BlockDevice, Env};
use brigade_format::{BackingState, Superblock};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Flash volumes at once.
const FLASHES: usize = 3;
/// Sectors read at once of a volume that is new.
const READ_SECTORS: u64 = 256;
/// Time between looks at a detach.
const LOOK: Duration = Duration::from_millis(10);

/// See the module documentation.
pub struct Warden {
    clients: Clients,
    backings: Vec<Backing>,
    register: Rc<RefCell<Register>>,
    chance: Chance,
    /// Sizes of flash volumes are multiples of it.
    unit: u64,
    /// They have so many sectors at most.
    sectors_max: u64,
    busy: RefCell<BTreeSet<usize>>,
    /// Operations left.
    left: Cell<u64>,
    verbose: bool,
}

impl Warden {
    /// Of a session's clients.
    pub fn new(set: &Set, clients: Clients) -> Rc<Self> {
        let chance = Chance::new(set.luck().next());
        let room = set.cache.borrow().geometry.size_bytes / 512;
        Rc::new(Warden {
            clients,
            backings: set.backings.clone(),
            register: set.register.clone(),
            unit: set.block_sectors.max(8),
            sectors_max: room / chance.pick(&[8, 16, 64]),
            busy: RefCell::default(),
            left: Cell::new(chance.between(3, 16)),
            chance,
            verbose: std::env::var("BRIGADE_VERBOSE").is_ok(),
        })
    }

    fn server(&self) -> &Rc<Server<World>> {
        &self.clients.server
    }

    /// Does what it has to, one or two operations at a time.
    pub async fn run(self: Rc<Self>) {
        let rest_max = self.chance.pick(&[5, 50, 500]);
        let wardens = (0..self.chance.between(1, 2)).map(|_| {
            let this = self.clone();
            async move {
                while let Some(left) = this.left.get().checked_sub(1) {
                    this.left.set(left);
                    let rest = Duration::from_millis(this.chance.below(rest_max));
                    this.clients.world.sleep(rest).await;
                    this.one().await;
                }
            }
        });
        brigade_env::sync::join_all(wardens).await;
    }

    /// One operation on a volume or device that nobody else changes.
    async fn one(&self) {
        let places = self.clients.volumes.borrow().len();
        let at = self.chance.below(places as u64) as usize;
        if !self.busy.borrow_mut().insert(at) {
            return;
        }
        let served = self.clients.volumes.borrow()[at].clone();
        match (served, at < self.backings.len()) {
            (None, true) => self.attach(at).await,
            (Some(volume), true) if volume.state() == "no cache" => {
                self.of_alone(at, &volume).await;
            }
            (Some(volume), true) => self.of_attached(at, &volume).await,
            (None, false) => self.create(at).await,
            (Some(volume), false) => self.of_flash(at, &volume).await,
        }
        self.busy.borrow_mut().remove(&at);
    }

    async fn of_alone(&self, at: usize, volume: &Rc<Volume<World>>) {
        match self.chance.below(10) {
            0 => self.stop_volume(at, volume).await,
            1 => self.label(at, volume).await,
            2 => self.grow_device(at, volume).await,
            _ => self.attach_volume(at, volume).await,
        }
    }

    async fn of_attached(&self, at: usize, volume: &Rc<Volume<World>>) {
        match self.chance.below(10) {
            0..2 => self.stop_volume(at, volume).await,
            2 => self.label(at, volume).await,
            3..5 => self.grow_device(at, volume).await,
            _ => self.detach(at, volume).await,
        }
    }

    async fn of_flash(&self, at: usize, volume: &Rc<Volume<World>>) {
        match self.chance.below(10) {
            0..3 => self.delete(at, volume).await,
            3 => self.label(at, volume).await,
            _ => self.resize(at, volume).await,
        }
    }

    /// Has something done, and says whether it was.
    async fn ask<T>(
        &self,
        what: &str,
        at: usize,
        doing: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (world, ledger) = (&self.clients.world, &self.clients.ledger);
        let text = format!("{what} v{at}");
        let id = ledger.open(text.clone());
        world.note(&text, "begin", [id, 0]);
        let result = doing.await;
        world.note(
            &text,
            if result.is_ok() { "done" } else { "failed" },
            [id, 0],
        );
        ledger.close(id, world.now());
        if self.verbose {
            let how = result.as_ref().map(|_| "done").map_err(Error::to_string);
            eprintln!("{:?} {text}: {how:?}", world.now());
        }
        if let Err(error) = &result {
            let is_full = error.what.contains("no bucket for its UUID table");
            let is_cancelled = what == "detach" && error.what.contains("cancelled");
            assert!(
                is_full || is_cancelled || self.may_fail(),
                "{text} failed: {error}"
            );
        }
        result
    }

    /// Anything may fail, and whether it happened is not known.
    fn may_fail(&self) -> bool {
        self.clients.ledger.faulty.get()
    }

    fn is_unsure(&self, error: &Error) -> bool {
        self.may_fail() && error.kind != ErrorKind::Refused
    }

    fn set_bond(&self, at: usize, bond: Bond) {
        self.register.borrow_mut().devices[at].bond = bond;
    }

    fn serve(&self, at: usize, volume: Option<Rc<Volume<World>>>) {
        self.clients.volumes.borrow_mut()[at] = volume;
    }

    /// A device is attached, and known to be so or as it was.
    fn attached(&self, at: usize, before: Bond, result: &Result<Rc<Volume<World>>, Error>) {
        match result {
            Ok(volume) => {
                assert_ne!(volume.state(), "no cache");
                self.set_bond(at, Bond::Attached);
                self.serve(at, Some(volume.clone()));
            }
            Err(error) if !self.is_unsure(error) => self.set_bond(at, before),
            Err(_) => (),
        }
    }

    async fn attach(&self, at: usize) {
        let before = self.register.borrow().devices[at].bond;
        // One that was detached may become attached at any moment; one that was not stays so.
        if before == Bond::Alone {
            self.set_bond(at, Bond::Unsure);
        }
        let device = self.clients.world.device(&self.backings[at].disk);
        let result = self.ask("attach", at, self.server().attach(device, None));
        let result = result.await;
        self.attached(at, before, &result);
        if let Ok(volume) = result {
            self.expect_size(at, &volume);
        }
    }

    async fn attach_volume(&self, at: usize, volume: &Rc<Volume<World>>) {
        let before = self.register.borrow().devices[at].bond;
        self.set_bond(at, Bond::Unsure);
        let attach = self.server().attach_volume(&volume.uuid, None);
        let result = self.ask("attach served", at, attach).await;
        self.attached(at, before, &result);
    }

    async fn stop_volume(&self, at: usize, volume: &Rc<Volume<World>>) {
        self.clients.ledger.excuse(at);
        let stop = self.server().stop_volume(&volume.uuid);
        let _ = self.ask("stop volume", at, stop).await;
        self.clients.ledger.excuse(at);
        let left = self.server().volume(&volume.uuid).ok();
        self.serve(at, left);
    }

    async fn detach(&self, at: usize, volume: &Rc<Volume<World>>) {
        self.set_bond(at, Bond::Unsure);
        let is_asked = Rc::new(());
        let is_cancelled = self.may_fail() || self.chance.percent(35);
        if is_cancelled {
            let after = Duration::from_millis(self.chance.below(200));
            let (server, world) = (self.server().clone(), self.clients.world.clone());
            let (uuid, goes_on) = (volume.uuid.clone(), Rc::downgrade(&is_asked));
            self.clients.world.spawn(async move {
                // One that goes wrong is cancelled at any rate, if not just then.
                while goes_on.upgrade().is_some() {
                    world.sleep(after + LOOK).await;
                    if server.cancel_detach(&uuid).is_ok() {
                        return;
                    }
                }
            });
        }
        let result = match self.chance.percent(30) {
            true => self.ask("detach", at, self.detach_unattended(volume)).await,
            false => {
                self.ask("detach", at, self.server().detach(&volume.uuid))
                    .await
            }
        };
        drop(is_asked);
        match result {
            Ok(()) => {
                let superblock = self.superblock(at);
                assert_eq!(
                    (superblock.state(), superblock.set_uuid, volume.state()),
                    (BackingState::None, [0; 16], "no cache"),
                    "device {at} is detached"
                );
                self.set_bond(at, Bond::Alone);
            }
            Err(error) if !self.is_unsure(&error) && volume.state() != "no cache" => {
                self.set_bond(at, Bond::Attached);
            }
            Err(_) => (),
        }
    }

    /// Detaches, and looks now and then how it goes.
    async fn detach_unattended(&self, volume: &Rc<Volume<World>>) -> Result<(), Error> {
        self.server().start_detach(&volume.uuid)?;
        loop {
            self.clients.world.sleep(LOOK).await;
            let detach = volume.status().and_then(|status| status.detach);
            match detach {
                None => return Ok(()),
                Some(DetachStatus {
                    running: false,
                    trouble: Some(what),
                    ..
                }) => {
                    // What kind of trouble is not told.
                    return Err(Error {
                        kind: ErrorKind::Device,
                        device: volume.name(),
                        what,
                    });
                }
                Some(_) => (),
            }
        }
    }

    fn superblock(&self, at: usize) -> Superblock {
        let mut bytes = vec![0; 4096];
        self.backings[at].disk.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    }

    async fn label(&self, at: usize, volume: &Rc<Volume<World>>) {
        let label = {
            let mut register = self.register.borrow_mut();
            let label = register.new_label();
            register.labels(at).push(label.clone());
            label
        };
        let name = self.server().set_label(&volume.uuid, &label);
        if self.ask("label", at, name).await.is_ok() {
            assert!(volume.is_called(&label));
            *self.register.borrow_mut().labels(at) = vec![label];
        }
    }

    fn expect_size(&self, at: usize, volume: &Rc<Volume<World>>) {
        let sectors = self.clients.oracles[at].borrow().size();
        assert_eq!(volume.size_bytes() / 512, sectors, "size of v{at}");
    }

    async fn grow_device(&self, at: usize, volume: &Rc<Volume<World>>) {
        let more = 8 * self.chance.between(1, 40);
        let was = {
            let mut disk = self.backings[at].disk.borrow_mut();
            let sectors = disk.geometry.size_bytes / 512;
            disk.grow(sectors + more);
            let mut oracle = self.clients.oracles[at].borrow_mut();
            let was = oracle.size();
            oracle.set_size(was + more);
            was
        };
        let look = self.server().resize(&volume.uuid, None, false);
        if self.ask("grow device", at, look).await.is_ok() {
            self.expect_size(at, volume);
            self.read(at, was).await;
        }
    }

    fn new_size(&self) -> u64 {
        self.chance.between(1, self.sectors_max / self.unit) * self.unit
    }

    async fn create(&self, at: usize) {
        let sectors = self.new_size();
        let (number, label) = {
            let mut register = self.register.borrow_mut();
            let number = at - self.backings.len();
            if register.present() >= FLASHES || register.flashes[number].known != Known::Unused {
                return;
            }
            let label = register.new_label();
            let flash = &mut register.flashes[number];
            flash.known = Known::Asked;
            (flash.labels, flash.sizes) = (vec![label.clone()], vec![sectors]);
            (number, label)
        };
        self.clients.oracles[at].borrow_mut().set_size(sectors);
        let create = self.server().create_flash(sectors * 512, &label, None);
        let result = self.ask("create", at, create).await;
        {
            let flash = &mut self.register.borrow_mut().flashes[number];
            match &result {
                Ok(volume) => (flash.known, flash.uuid) = (Known::There, volume.uuid.clone()),
                Err(error) if !self.is_unsure(error) => flash.known = Known::Gone,
                Err(_) => (),
            }
        }
        if let Ok(volume) = result {
            self.expect_size(at, &volume);
            self.serve(at, Some(volume));
            self.read(at, 0).await;
        }
    }

    async fn delete(&self, at: usize, volume: &Rc<Volume<World>>) {
        let number = at - self.backings.len();
        let know = |known: Known| self.register.borrow_mut().flashes[number].known = known;
        know(Known::Leaving);
        self.clients.ledger.excuse(at);
        let delete = self.server().delete_flash(&volume.uuid);
        let result = self.ask("delete", at, delete).await;
        self.clients.ledger.excuse(at);
        match result {
            Ok(()) => know(Known::Gone),
            Err(error) if !self.is_unsure(&error) => know(Known::There),
            Err(_) => (),
        }
        let left = self.server().volume(&volume.uuid).ok();
        self.serve(at, left);
    }

    async fn resize(&self, at: usize, volume: &Rc<Volume<World>>) {
        let was = volume.size_bytes() / 512;
        let wanted = self.new_size();
        if wanted == was {
            return;
        }
        let number = at - self.backings.len();
        let change = |change: &dyn Fn(&mut Vec<u64>)| {
            change(&mut self.register.borrow_mut().flashes[number].sizes);
        };
        change(&|sizes| sizes.push(wanted));
        let resize = self.server().resize(&volume.uuid, Some(wanted * 512), true);
        let oracle = &self.clients.oracles[at];
        let result = if wanted > was {
            // What a shrink that failed left of it is what it was.
            if oracle.borrow().size() < wanted {
                oracle.borrow_mut().set_size(wanted);
            }
            self.ask("grow", at, resize).await
        } else {
            self.shrink(at, was, wanted, resize).await
        };
        match &result {
            Ok(_) => change(&|sizes| *sizes = vec![wanted]),
            Err(error) if !self.is_unsure(error) => change(&|sizes| {
                sizes.pop();
            }),
            Err(_) => (),
        }
        if result.is_ok() {
            oracle.borrow_mut().set_size(wanted);
            self.expect_size(at, volume);
            self.read(at, was).await;
        }
    }

    /// Until it is known what became of it, what lies behind the new end is there or gone.
    async fn shrink<T>(
        &self,
        at: usize,
        was: u64,
        wanted: u64,
        resize: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let ledger = &self.clients.ledger;
        let oracle = &self.clients.oracles[at];
        let writing = oracle.borrow_mut().begin_discard(wanted, was - wanted);
        let id = ledger.open(format!("what v{at} has behind {wanted}"));
        ledger.writing.borrow_mut().insert(id, (at, writing));
        ledger.excuse(at);
        let result = self.ask("shrink", at, resize).await;
        ledger.excuse(at);
        ledger.writing.borrow_mut().remove(&id);
        ledger.close(id, self.clients.world.now());
        oracle.borrow_mut().abandon(writing);
        result
    }

    /// Reads what is new of a volume.
    async fn read(&self, at: usize, from: u64) {
        let volume = self.clients.volumes.borrow()[at].clone();
        let size = volume.map_or(0, |volume| volume.size_bytes() / 512);
        let mut first = from;
        while first < size {
            let count = READ_SECTORS.min(size - first);
            self.clients.read(at, first, count, 8).await;
            first += count;
        }
    }
}
