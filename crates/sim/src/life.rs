//! The life of one cache set: rounds of opening, working and ending, and what must hold in between.

use crate::crash::{Aim, Crash};
use crate::disk::End;
use crate::drive::{STEPS_MAX, drive, drive_until};
use crate::exec::{Chance, Trace, World};
use crate::plan::Plan;
use crate::register::Bond;
use crate::rest;
use crate::set::{FINDINGS, Set};
use crate::tally::Tally;
use crate::warden::Warden;
use crate::weather::{self, Weather};
use crate::work::{Clients, Ledger, Mix, Request};
use brigade_engine::marks::Mark;
use brigade_engine::recovery::Loaded;
use brigade_engine::settings::Knob;
use brigade_engine::{DrainEnd, Error, Options, Server};
use brigade_env::Env;
use brigade_format::{BackingState, CacheMode, Gen};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Collections asked for in a round, if any are.
const COLLECTIONS: usize = 12;

/// Which requests of a life are made; the rest is left out.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Round and number of each request that is made; all of them if absent.
    pub only: Option<BTreeSet<(u64, u64)>>,
    /// Rounds from here on do not happen.
    pub rounds: Option<u64>,
    /// See [`Set::shift`].
    pub shift: u64,
}

/// A process that serves a set.
pub struct Session {
    /// Its world.
    pub world: World,
    /// What it serves.
    pub server: Rc<Server<World>>,
    /// What clients asked for.
    pub ledger: Rc<Ledger>,
    /// Devices that had left a failed cache before.
    left: Vec<String>,
}

/// Looks at a set that has just completed a device operation, and at what is under way.
pub type Observer = Box<dyn FnMut(&Set, &Ledger)>;

/// See the module documentation.
pub struct Life {
    /// The set.
    pub set: Set,
    pub(crate) plan: Plan,
    choice: Choice,
    /// Requests that were asked for, by round.
    pub scripts: Rc<RefCell<Vec<Vec<Request>>>>,
    verbose: bool,
    /// Called after every device operation of the clients' work.
    pub observer: Option<Observer>,
    /// The k-th I/O of a device fails, counted in every round from where clients begin.
    pub fail: Option<(usize, u64)>,
    /// I/Os of each device in the round that took most, counted from there.
    pub ios: Vec<u64>,
    /// Per bucket the gen that the last session, when it crashed, thought no pointer is older than.
    oldest: Vec<Gen>,
}

/// Whether a set was given up.
fn has_failed(server: &Server<World>) -> bool {
    let sets = server.status().cache_sets;
    sets.iter().any(|set| set.state == "poisoned")
}

impl Life {
    /// A set as a formatter leaves it.
    pub fn new(seed: u64, plan: Plan) -> Life {
        Life::traced(seed, plan, Choice::default(), Trace::default())
    }

    /// A life whose events are noted, perhaps without some of its requests.
    pub fn traced(seed: u64, plan: Plan, choice: Choice, trace: Trace) -> Life {
        let mut set = Set::new(seed, &plan, trace);
        set.shift = choice.shift;
        let verbose = std::env::var("BRIGADE_VERBOSE").is_ok();
        for oracle in set.oracles.iter() {
            oracle.borrow_mut().keeps_log = verbose;
        }
        Life {
            set,
            plan,
            choice,
            scripts: Rc::default(),
            verbose,
            observer: None,
            fail: None,
            ios: Vec::new(),
            oldest: Vec::new(),
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("seed {}: {:?} {}", self.set.seed, self.set.now, what());
        }
    }

    fn end(&mut self, world: &World, end: End, ledger: Option<&Ledger>) {
        match end {
            End::Kill => self.set.tally.kills += 1,
            End::PowerLoss => self.set.tally.power_losses += 1,
        }
        self.set.end(world, end, ledger);
    }

    fn which_end(&self) -> End {
        if self.plan.power_loss && self.set.chance.percent(50) {
            End::PowerLoss
        } else {
            End::Kill
        }
    }

    /// A crash at a step, or with a chance of so many percent where this life aims.
    fn crash(&self, step: Option<u64>, aimed_percent: u64) -> Crash {
        let chance = &self.set.chance;
        let aim = self
            .plan
            .aim
            .filter(|_| chance.percent(aimed_percent))
            .map(|mark| Aim::new(mark, chance));
        Crash {
            step: step.filter(|_| aim.is_none()),
            aim,
        }
    }

    /// Opens until it succeeds; may be cut off on the way.
    fn reopen(&mut self, options: &Options, given: &[usize]) -> Session {
        loop {
            if let Some(loaded) = self.set.inspect() {
                check_oldest(self.set.seed, &loaded, &self.oldest);
            }
            let world = self.set.world();
            let ledger = Rc::new(Ledger::default());
            let left = self.set.devices_that_left();
            let chance = &self.set.chance;
            let crash_at = chance.percent(20).then(|| chance.below(400));
            let crash = self.crash(crash_at, 85);
            let opening = self.set.open(&world, options, given);
            match drive_until(
                &mut self.set,
                &world,
                "open",
                opening,
                &crash,
                &ledger,
                None,
            ) {
                Some(Ok(server)) => {
                    // After an opening that was cut off clean data is compared, and disks may have lied about it.
                    let also: &[&str] = if self.plan.lies { &["F70"] } else { &[] };
                    check_warnings_but(self.set.seed, &server, also, &left);
                    self.set.check_opened(&server, given);
                    return Session {
                        world,
                        server,
                        ledger,
                        left,
                    };
                }
                Some(Err(error)) => panic!("seed {}: open: {error}", self.set.seed),
                None => {
                    let end = self.which_end();
                    self.say(|| format!("{end:?} while opening, at step {}", world.steps()));
                    self.set.tally.cut_openings += 1;
                    self.end(&world, end, None);
                    // It may have used gens again that the session before had in memory only, with nothing durable that names them.
                    self.oldest.clear();
                }
            }
        }
    }

    /// Runs something of a session that must end; `None` if the crash came first.
    fn drive<T: 'static>(
        &mut self,
        session: &Session,
        what: &str,
        future: impl Future<Output = T> + 'static,
        crash: Option<&Crash>,
    ) -> Option<T> {
        let Session {
            world,
            server,
            ledger,
            ..
        } = session;
        drive_until(
            &mut self.set,
            world,
            what,
            future,
            crash.unwrap_or(&Crash::NEVER),
            ledger,
            Some(server),
        )
    }

    fn clients(&self, session: &Session) -> Clients {
        self.set
            .clients(&session.world, &session.server, &session.ledger)
    }

    fn read_all(&mut self, session: &Session) {
        let reading = self.clients(session);
        self.drive(
            session,
            "reads",
            async move { reading.read_everything().await },
            None,
        );
    }

    fn read_only_look(&mut self, given: &[usize]) {
        let before: Vec<_> = self.set.disks().map(|disk| disk.borrow().image()).collect();
        let options = Options {
            read_only: true,
            ..self.options()
        };
        let (world, ledger) = (self.set.world(), Rc::new(Ledger::default()));
        let opening = self.set.open(&world, &options, given);
        let opened = drive(
            &mut self.set,
            &world,
            "open read-only",
            opening,
            None,
            &ledger,
            None,
        );
        let server = match opened.expect("it ends") {
            Ok(server) => server,
            Err(error) => panic!("seed {}: open read-only: {error}", self.set.seed),
        };
        let session = Session {
            world,
            server,
            ledger,
            left: Vec::new(),
        };
        self.read_all(&session);
        self.stop(&session);
        session.world.kill();
        let is_same = self
            .set
            .disks()
            .zip(&before)
            .all(|(disk, before)| disk.borrow().image().is_same(before));
        assert!(
            is_same,
            "seed {}: a read-only opening changed a device",
            self.set.seed
        );
    }

    /// The requests of a round, without those that are to be left out.
    fn script(&mut self, number: u64, mix: &Mix, clients: &Clients) -> Vec<Request> {
        let table = clients.volumes.borrow();
        let sizes = (0..).zip(self.set.oracles.iter().map(|oracle| oracle.borrow().size()));
        let mut served: Vec<_> = sizes.filter(|(at, _)| table[*at].is_some()).collect();
        if self.plan.lifecycle {
            // Also those that may come.
            let backings = self.set.backings.len();
            let size_of = |at: usize| self.set.oracles[at].borrow().size();
            served = (0..backings).map(|at| (at, size_of(at))).collect();
            let flash = 32 * self.set.bucket_sectors;
            served.extend([(backings, flash), (backings + 1, flash)]);
        }
        let chance = Chance::new(self.set.chance.next());
        let mut script = mix.script(&chance, &served);
        if let Some(only) = &self.choice.only {
            script.retain(|request| only.contains(&(number, request.number)));
        }
        self.scripts.borrow_mut().push(script.clone());
        script
    }

    /// One opening with work, ended by a crash or cleanly.
    fn round(&mut self, number: u64) {
        let options = self.options();
        let given = self.given();
        self.say(|| format!("round {number} {given:?} {options:?}"));
        if number > 0 && self.set.chance.percent(15) {
            self.read_only_look(&given);
        }
        let session = self.reopen(&options, &given);
        if number > 0 && self.set.chance.percent(30) {
            self.read_all(&session);
        }
        let weather = weather::arm(&self.set, &self.plan, self.fail, &session.ledger);
        let is_calm = weather == Weather::Calm && self.fail.is_none();
        let stops_early = is_calm && self.observer.is_none() && self.set.chance.percent(6);
        let done = self.work(number, &session, stops_early);
        self.say(|| {
            let ledger = &session.ledger;
            format!(
                "{} requests done, {} failed",
                ledger.done.get(),
                ledger.failed.get()
            )
        });
        let is_whole = done.is_some() && weather != Weather::Foul && self.fail.is_none();
        if weather == Weather::Rough {
            weather::faults_stop(&self.set);
        }
        // A set that had too many errors cannot be stopped in order.
        let is_whole = is_whole && (weather == Weather::Calm || !has_failed(&session.server));
        if is_whole && !stops_early {
            let runs = options.settings.get(&Knob::WritebackRunning) != Some(&0);
            if runs && self.set.chance.percent(15) {
                self.settles(&session);
            } else if self.set.chance.percent(30) {
                self.pause(&session);
            }
        }
        session.server.audit();
        if self.plan.lifecycle {
            let (seed, left) = (self.set.seed, &session.left);
            check_warnings_but(seed, &session.server, &[], left);
        }
        let is_whole = is_whole && (weather == Weather::Calm || !has_failed(&session.server));
        let is_stopped = is_whole
            && (stops_early || self.set.chance.percent(50) && self.stop_after(&session, weather));
        if is_stopped {
            self.end_stopped(session);
        } else {
            self.oldest = session.server.oldest_gens().concat();
            let Session { world, ledger, .. } = session;
            let end = self.which_end();
            self.say(|| format!("{end:?}"));
            self.end(&world, end, Some(&ledger));
        }
        for oracle in self.set.oracles.iter() {
            oracle.borrow_mut().blind = false;
        }
        self.set.check_detached();
        rest::after_any_end(&mut self.set, &self.plan);
    }

    /// A clean stop of the process says nothing about power, but nothing acknowledged is only in memory.
    fn end_stopped(&mut self, session: Session) {
        self.set.tally.stops += 1;
        let loaded = self.check_stopped(session);
        rest::after_stop(&mut self.set, &self.plan, &loaded);
    }

    /// Clients make their requests; a stop may come in between, and those that come after it fail.
    fn work(&mut self, number: u64, session: &Session, stops_early: bool) -> Option<()> {
        let ios_before: Vec<u64> = self.set.disks().map(|disk| disk.borrow().ios).collect();
        let most = self.plan.requests_max;
        let mix = self.mix(self.set.chance.between(most / 4, most));
        self.say(|| format!("{mix:?}"));
        self.drain_meanwhile(session);
        let clients = self.clients(session);
        let script = self.script(number, &mix, &clients);
        let chance = self.set.luck();
        let steps = 40 * (1 + script.len() as u64);
        let crash_at = (!stops_early && chance.percent(75))
            .then(|| session.world.steps() + chance.below(steps));
        let stop_after = Duration::from_millis(chance.between(1, 100));
        let is_of_opening = self.plan.aim == Some(Mark::RecordReplayed);
        let aimed_percent = if stops_early || is_of_opening { 0 } else { 80 };
        let crash = self.crash(crash_at, aimed_percent);
        session
            .ledger
            .faulty
            .set(session.ledger.faulty.get() || stops_early);
        self.have_collected(number, session);
        let (server, world) = (session.server.clone(), session.world.clone());
        let stop = async move {
            if stops_early {
                world.sleep(stop_after).await;
                server.stop().await.expect("a stop while clients work");
            }
        };
        let is_changed = self.plan.lifecycle;
        let warden = is_changed.then(|| Warden::new(&self.set, clients.clone()));
        let changes = async move {
            if let Some(warden) = warden {
                warden.run().await;
            }
        };
        let work = async move {
            let asked = brigade_env::sync::join(clients.run(mix.clients, script), stop);
            brigade_env::sync::join(asked, changes).await;
        };
        let done = self.observed(session, work, &crash);
        self.ios.resize(ios_before.len(), 0);
        for ((most, before), disk) in self.ios.iter_mut().zip(ios_before).zip(self.set.disks()) {
            *most = (*most).max(disk.borrow().ios - before);
        }
        done
    }

    /// Collections are asked for now and then while a round goes on.
    fn have_collected(&self, number: u64, session: &Session) {
        if !self.plan.collects {
            return;
        }
        let chance = Chance::new(self.set.seed ^ 0x5eed_0c01_1ec7 ^ number << 56);
        let (server, world) = (session.server.clone(), session.world.clone());
        session.world.spawn(async move {
            for _ in 0..COLLECTIONS {
                world
                    .sleep(Duration::from_millis(chance.between(1, 400)))
                    .await;
                server.collect();
            }
        });
    }

    /// Nothing fails any more: dirty data drains, and there are buckets again.
    fn settles(&mut self, session: &Session) {
        let (server, world) = (session.server.clone(), session.world.clone());
        let is_hurried = self.set.chance.percent(50);
        let settled = async move {
            if is_hurried {
                let volumes = server.volumes();
                // Others were begun while clients worked, and may leave what these have written since.
                let begun = volumes.into_iter().filter(|volume| volume.drain());
                for volume in begun.collect::<Vec<_>>() {
                    if volume.drained().await == Some(DrainEnd::Done) {
                        assert_eq!(volume.dirty_bytes(), 0, "a drain says that it is done");
                    }
                }
            }
            loop {
                let is_drained = server
                    .volumes()
                    .iter()
                    .all(|volume| volume.state() == "flash" || volume.dirty_bytes() == 0);
                let sets = server.status().cache_sets;
                let mut devices = sets.iter().flat_map(|set| &set.devices);
                let refilled =
                    devices.all(|device| device.buckets.free > 0 || device.buckets.clean == 0);
                // With one that has failed there is nothing to wait for.
                if (is_drained && refilled) || has_failed(&server) {
                    return;
                }
                world.sleep(Duration::from_millis(100)).await;
            }
        };
        self.drive(session, "dirty data drains, buckets refill", settled, None);
    }

    /// Now and then volumes are drained while clients work, and perhaps not to the end.
    fn drain_meanwhile(&self, session: &Session) {
        let chance = &self.set.chance;
        if !chance.percent(20) {
            return;
        }
        let (server, world) = (session.server.clone(), session.world.clone());
        let (begin, end) = (chance.between(0, 20), chance.between(1, 50));
        let is_cancelled = chance.percent(50);
        session.world.spawn(async move {
            world.sleep(Duration::from_millis(begin)).await;
            let _ = server.drain(None);
            world.sleep(Duration::from_millis(end)).await;
            if is_cancelled {
                let _ = server.cancel_drain(None);
            }
        });
    }

    /// The clients' work, under the eyes of the observer.
    fn observed(
        &mut self,
        session: &Session,
        work: impl Future<Output = ()> + 'static,
        crash: &Crash,
    ) -> Option<()> {
        let Some(mut observer) = self.observer.take() else {
            return self.drive(session, "work", work, Some(crash));
        };
        let (world, ledger) = (&session.world, &session.ledger);
        let mut seen = world.device_operations();
        let limit = world.steps() + STEPS_MAX;
        let set = &mut self.set;
        let done = world.run(work, || {
            if world.device_operations() != seen {
                seen = world.device_operations();
                set.now = world.now();
                observer(set, ledger);
            }
            world.steps() > limit
        });
        self.observer = Some(observer);
        done
    }

    /// Lets background work go on for a while.
    fn pause(&mut self, session: &Session) {
        let time = Duration::from_secs(self.set.chance.pick(&[1, 40, 100]));
        let env = session.world.clone();
        self.drive(session, "pause", async move { env.sleep(time).await }, None);
    }

    fn stop(&mut self, session: &Session) {
        self.stop_after(session, Weather::Calm);
    }

    /// Whether it is a clean stop. It has to be, unless what failed in rough weather was still on its way, and one error too many.
    fn stop_after(&mut self, session: &Session, weather: Weather) -> bool {
        let stop = session.server.clone();
        let stopped = self.drive(session, "stop", async move { stop.stop().await }, None);
        let is_one_too_many = |error: &Error| error.to_string().contains("too many errors");
        match stopped {
            Some(Ok(())) => {
                self.say(|| "clean stop".into());
                true
            }
            Some(Err(error)) if weather == Weather::Rough && is_one_too_many(&error) => false,
            other => panic!("seed {}: stop: {other:?}", self.set.seed),
        }
    }

    fn check_stopped(&mut self, session: Session) -> Loaded {
        let Session { world, ledger, .. } = &session;
        self.set.end(world, End::Kill, Some(ledger));
        let loaded = self.set.inspect().expect("an initialised set");
        assert_eq!(
            loaded.newest.last_seq, loaded.newest.seq,
            "seed {}: something to replay after a clean stop",
            self.set.seed
        );
        assert!(
            loaded.overlay.is_empty(),
            "seed {}: keys in the entry of a clean stop",
            self.set.seed
        );
        let oldest = session.server.oldest_gens().concat();
        check_oldest(self.set.seed, &loaded, &oldest);
        // At rest gens may be edited.
        self.oldest.clear();
        loaded
    }

    /// The whole life.
    pub fn run(mut self) -> Tally {
        self.live();
        self.tally()
    }

    /// What happened.
    pub fn tally(&self) -> Tally {
        let mut tally = self.set.tally.clone();
        tally.runs = 1;
        tally.of_cache_faults = u64::from(self.plan.cache_faults);
        for disk in self.set.disks() {
            for (mine, more) in tally.faults.iter_mut().zip(disk.borrow().happened) {
                *mine += more;
            }
        }
        tally
    }

    /// The whole life, step by step.
    pub fn live(&mut self) {
        let rounds = self
            .set
            .chance
            .between(2.min(self.plan.rounds_max), self.plan.rounds_max);
        self.say(|| format!("{:?} {:?}", self.plan, self.set.cache.borrow().geometry));
        let rounds = rounds.min(self.choice.rounds.unwrap_or(rounds));
        for number in 0..rounds {
            self.round(number);
        }
        self.finish();
    }

    /// Everything is read, written back, read again, and compared with what is on the backing devices.
    pub fn finish(&mut self) {
        let options = Options {
            mode: Some(CacheMode::Writeback),
            ..self.options()
        }
        .with(Knob::WritebackRunning, 1)
        .with(Knob::WritebackPercent, 0)
        .with(Knob::WritebackDelay, 1000);
        let given: Vec<usize> = (0..self.set.backings.len()).collect();
        let session = self.reopen(&options, &given);
        self.read_all(&session);
        let waiting = (session.server.clone(), session.world.clone());
        let until_clean = async move {
            while waiting.0.volumes().iter().any(|volume| {
                volume.state() != "flash" && volume.dirty_bytes() > 0 || volume.state() == "dirty"
            }) {
                waiting.1.sleep(Duration::from_millis(100)).await;
            }
        };
        self.drive(&session, "writeback", until_clean, None);
        if self.set.chance.percent(30) {
            self.read_all(&session);
        }
        session.server.audit();
        self.stop(&session);
        self.check_stopped(session);
        if self.plan.power_loss && self.set.chance.percent(50) {
            self.set.end_devices(End::PowerLoss);
        }
        self.compare_backings();
    }

    /// What is on the backing devices alone is what the volumes hold.
    fn compare_backings(&self) {
        for number in 0..self.set.backings.len() {
            let bond = self.set.register.borrow().devices[number].bond;
            let state = match bond {
                Bond::Alone => BackingState::None,
                Bond::Attached | Bond::Unsure => BackingState::Clean,
            };
            assert_eq!(
                self.set.backing_superblock(number).state(),
                state,
                "seed {}: everything is written back",
                self.set.seed
            );
            self.set.compare_backing(number);
        }
    }
}

/// TREE-6: no pointer in the tree or the range of replay is older than the engine knew when it ended.
fn check_oldest(seed: u64, loaded: &Loaded, known: &[Gen]) {
    for (nr, (known, oldest)) in known.iter().zip(&loaded.oldest_gens).enumerate() {
        let is_named = loaded.referenced[nr] || loaded.gens[nr] != *oldest;
        let older = known.after(*oldest);
        assert!(
            older == 0 || !is_named,
            "seed {seed}: TREE-6: a pointer to bucket {nr} is {older} gens older than the oldest one known"
        );
    }
}

/// What an opening may remark about an image of our own.
pub fn check_warnings(seed: u64, server: &Server<World>) {
    check_warnings_but(seed, server, &[], &[]);
}

/// The same, with remarks that are allowed besides. Of devices that left a failed cache the set may have keys that say dirty: all of it
/// was written back, or never acknowledged, or they would not have left.
fn check_warnings_but(seed: u64, server: &Server<World>, also: &[&str], left: &[String]) {
    for warning in server.warnings() {
        let is_known = FINDINGS
            .iter()
            .chain(also)
            .any(|id| warning.ends_with(&format!("({id})")));
        let has_left = warning.ends_with("are given up")
            && left
                .iter()
                .any(|uuid| warning.starts_with(&format!("device {uuid}: ")));
        assert!(is_known || has_left, "seed {seed}: {warning}");
    }
}
