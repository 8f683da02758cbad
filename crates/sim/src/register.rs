//! What must be true of volumes and devices that come and go (`set/lifecycle` of the engine): what was acknowledged is so whatever ended
//! the process, what was under way is as before or as asked for, and nothing else is there.

use crate::set::{Set, text_of};
use brigade_engine::{Server, Volume};
use brigade_env::BlockDevice;
use brigade_format::BackingState;
use std::rc::Rc;

use crate::exec::World;

/// Flash volumes that a life makes at most. Each has an oracle of its own, so that data of another one is nobody's.
pub const PLACES: usize = 10;

/// What is known of a flash volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Known {
    /// It was never asked for.
    #[default]
    Unused,
    /// It was asked for; whether it was made shows at the next opening.
    Asked,
    /// It exists.
    There,
    /// Its deletion was asked for; whether it happened shows at the next opening.
    Leaving,
    /// It does not exist and never will.
    Gone,
}

/// A flash volume.
#[derive(Clone, Debug, Default)]
pub struct Flash {
    /// See [`Known`].
    pub known: Known,
    /// Its identity, once that is known.
    pub uuid: String,
    /// Labels that it may have, the newest last.
    pub labels: Vec<String>,
    /// Sizes that it may have in sectors, the newest last.
    pub sizes: Vec<u64>,
}

/// Whether a backing device is attached to the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// It is, from the next opening that it is given to at the latest.
    Attached,
    /// It is not, and holds everything.
    Alone,
    /// Something was asked for and not acknowledged.
    Unsure,
}

/// A backing device.
#[derive(Clone, Debug)]
pub struct Device {
    /// See [`Bond`].
    pub bond: Bond,
    /// Labels that it may have, the newest last.
    pub labels: Vec<String>,
}

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Register {
    /// Backing devices.
    pub devices: Vec<Device>,
    /// Flash volumes: the first one's oracle comes behind those of the devices.
    pub flashes: Vec<Flash>,
    labels: u64,
}

impl Register {
    /// Of devices as they were formatted; none of flash volumes that no warden makes.
    pub fn new(devices: usize, places: usize) -> Self {
        let device = |number| Device {
            bond: Bond::Attached,
            labels: vec![format!("data{number}")],
        };
        Register {
            devices: (0..devices).map(device).collect(),
            flashes: vec![Flash::default(); places],
            labels: 0,
        }
    }

    /// A label that nothing has had.
    pub fn new_label(&mut self) -> String {
        self.labels += 1;
        format!("label {}", self.labels)
    }

    /// Labels that a volume may have, by oracle.
    pub fn labels(&mut self, at: usize) -> &mut Vec<String> {
        let devices = self.devices.len();
        match at < devices {
            true => &mut self.devices[at].labels,
            false => &mut self.flashes[at - devices].labels,
        }
    }

    /// Whose oracle a flash volume has; `None`: it was under way, and nobody knows it yet.
    pub fn flash(&self, uuid: &str, label: &str) -> Option<usize> {
        let known = self.flashes.iter().position(|flash| flash.uuid == uuid);
        if known.is_none() {
            let is_it = |flash: &&Flash| is_asked(flash, label);
            let asked = self.flashes.iter().find(is_it);
            assert!(asked.is_some(), "nobody made flash volume {uuid} {label:?}");
        }
        known.map(|at| self.devices.len() + at)
    }

    /// How many flash volumes there may be.
    pub fn present(&self) -> usize {
        let is_absent = |flash: &&Flash| matches!(flash.known, Known::Unused | Known::Gone);
        self.flashes.len() - self.flashes.iter().filter(is_absent).count()
    }
}

fn is_asked(flash: &Flash, label: &str) -> bool {
    flash.known == Known::Asked && flash.labels.iter().any(|it| it == label)
}

impl Set {
    /// Compares what an opening serves of these devices with what was acknowledged; from then on it is what it is seen to be.
    pub fn check_opened(&self, server: &Server<World>, given: &[usize]) {
        let volumes = server.volumes();
        let mut register = self.register.borrow_mut();
        if register.flashes.is_empty() {
            return;
        }
        let find = |uuid: &[u8; 16]| volumes.iter().find(|it| it.uuid == text_of(uuid));
        for at in given {
            let volume = find(&self.backings[*at].uuid);
            let volume =
                volume.unwrap_or_else(|| panic!("seed {}: device {at} is not served", self.seed));
            self.check_device(&mut register.devices[*at], *at, volume);
        }
        let devices = register.devices.len();
        for (number, flash) in register.flashes.iter_mut().enumerate() {
            let is_it = |volume: &&Rc<Volume<World>>| {
                volume.uuid == flash.uuid || is_asked(flash, &volume.label())
            };
            let found = volumes.iter().find(is_it);
            self.check_flash(flash, devices + number, found);
        }
        for volume in volumes.iter().filter(|it| it.state() == "flash") {
            register.flash(&volume.uuid, &volume.label());
        }
    }

    fn check_device(&self, device: &mut Device, at: usize, volume: &Volume<World>) {
        let is_alone = volume.state() == "no cache";
        let bond = device.bond;
        assert!(
            bond == Bond::Unsure || is_alone == (bond == Bond::Alone),
            "seed {}: device {at} should be {bond:?}, and is {}",
            self.seed,
            volume.state()
        );
        device.bond = if is_alone {
            Bond::Alone
        } else {
            Bond::Attached
        };
        self.check_label(&mut device.labels, volume);
        let sectors = volume.size_bytes() / 512;
        assert_eq!(
            sectors,
            self.oracles[at].borrow().size(),
            "seed {}: size of device {at}",
            self.seed
        );
    }

    fn check_label(&self, labels: &mut Vec<String>, volume: &Volume<World>) {
        let label = volume.label();
        assert!(
            labels.contains(&label),
            "seed {}: label {label:?}, and not one of {labels:?}",
            self.seed
        );
        *labels = vec![label];
    }

    fn check_flash(&self, flash: &mut Flash, at: usize, found: Option<&Rc<Volume<World>>>) {
        let Some(volume) = found else {
            assert!(
                flash.known != Known::There,
                "seed {}: {flash:?} is lost",
                self.seed
            );
            if flash.known != Known::Unused {
                flash.known = Known::Gone;
            }
            return;
        };
        assert!(
            !matches!(flash.known, Known::Unused | Known::Gone),
            "seed {}: {flash:?} is there",
            self.seed
        );
        let sectors = volume.size_bytes() / 512;
        assert!(
            flash.sizes.contains(&sectors),
            "seed {}: {flash:?} has {sectors} sectors",
            self.seed
        );
        (flash.known, flash.uuid, flash.sizes) = (Known::There, volume.uuid.clone(), vec![sectors]);
        self.check_label(&mut flash.labels, volume);
        self.oracles[at].borrow_mut().set_size(sectors);
    }

    /// Devices that were detached say so, and hold everything, with nobody's help.
    pub fn check_detached(&self) {
        let register = self.register.borrow();
        let alone = |at: &usize| register.devices[*at].bond == Bond::Alone;
        if register.flashes.is_empty() {
            return;
        }
        for at in (0..self.backings.len()).filter(alone) {
            let superblock = self.backing_superblock(at);
            assert_eq!(
                (superblock.state(), superblock.set_uuid),
                (BackingState::None, [0; 16]),
                "seed {}: device {at} was detached",
                self.seed
            );
            self.compare_backing(at);
        }
    }

    /// What is on a backing device alone is what its volume holds.
    pub fn compare_backing(&self, at: usize) {
        let backing = &self.backings[at];
        let disk = backing.disk.borrow();
        let mut oracle = self.oracles[at].borrow_mut();
        for sector in oracle.used() {
            let mut bytes = [0; 512];
            disk.peek((backing.data_offset + sector) * 512, &mut bytes);
            let began = oracle.begin_read();
            oracle.check(began, sector, &bytes, "backing device alone");
        }
    }
}
