//! The queues against a naive twin, and rule by rule.

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

/// What there is: buckets for everybody, buckets for metadata only, sectors in open buckets, and memory.
#[derive(Clone, Copy, Debug, Default)]
struct Stock {
    buckets: usize,
    reserved: usize,
    open_sectors: u64,
    bytes: usize,
}

const BUCKET: u64 = 8;

impl Supply for Stock {
    fn suffices(&self, need: Need, new_buckets: bool) -> bool {
        match need {
            Need::Metadata(count) => self.buckets + self.reserved >= count,
            Need::Data(sectors, _) => {
                let new = if new_buckets { self.buckets as u64 } else { 0 };
                self.open_sectors + new * BUCKET >= sectors
            }
            Need::Fill(bytes) => self.bytes >= bytes,
        }
    }
}

impl Stock {
    fn take(&mut self, need: Need, new_buckets: bool) {
        match need {
            Need::Metadata(count) => {
                let common = count.min(self.buckets);
                self.buckets -= common;
                self.reserved -= count - common;
            }
            Need::Data(sectors, _) => {
                while self.open_sectors < sectors {
                    assert!(new_buckets, "BKT-2: data takes a bucket before metadata");
                    self.buckets -= 1;
                    self.open_sectors += BUCKET;
                }
                self.open_sectors -= sectors;
            }
            Need::Fill(bytes) => self.bytes -= bytes,
        }
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Served = Rc<RefCell<Vec<(usize, usize)>>>;

/// Tasks that ask for something, and a twin that keeps nothing but lists of who asked when.
struct World {
    queues: Rc<RefCell<Queues>>,
    stock: Rc<RefCell<Stock>>,
    tasks: Vec<(usize, Task)>,
    served: Served,
    waiting: [Vec<(usize, Need)>; 3],
    next: usize,
    wakes: Rc<Cell<usize>>,
}

struct Leave(Rc<RefCell<Queues>>, Rc<Waiter>, Rc<RefCell<Stock>>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.borrow_mut().leave(&self.1);
        self.0.borrow().serve(&*self.2.borrow());
    }
}

impl World {
    fn new() -> World {
        World {
            queues: Rc::default(),
            stock: Rc::default(),
            tasks: Vec::new(),
            served: Rc::default(),
            waiting: Default::default(),
            next: 0,
            wakes: Rc::default(),
        }
    }

    fn ask(&mut self, need: Need) {
        let id = self.next;
        self.next += 1;
        self.waiting[need.queue()].push((id, need));
        let (queues, stock) = (self.queues.clone(), self.stock.clone());
        let (served, wakes) = (self.served.clone(), self.wakes.clone());
        let task = async move {
            let mut place: Option<Leave> = None;
            loop {
                let waiter = place.as_ref().map(|place| &place.1);
                let (next, new_buckets) = {
                    let queues = queues.borrow();
                    (queues.is_next(need, waiter), queues.new_buckets())
                };
                let suffices = stock.borrow().suffices(need, new_buckets);
                if next && suffices {
                    stock.borrow_mut().take(need, new_buckets);
                    served.borrow_mut().push((need.queue(), id));
                    return;
                }
                let place = place.get_or_insert_with(|| {
                    let waiter = queues.borrow_mut().enter(need);
                    Leave(queues.clone(), waiter, stock.clone())
                });
                place.1.turn().await;
                wakes.set(wakes.get() + 1);
            }
        };
        self.tasks.push((id, Box::pin(task)));
        self.poll(self.tasks.len() - 1);
    }

    fn poll(&mut self, at: usize) {
        let mut context = Context::from_waker(Waker::noop());
        if self.tasks[at].1.as_mut().poll(&mut context).is_ready() {
            drop(self.tasks.remove(at));
        }
    }

    fn supply(&mut self, change: impl FnOnce(&mut Stock)) {
        change(&mut self.stock.borrow_mut());
        self.queues.borrow().serve(&*self.stock.borrow());
    }

    fn leave(&mut self, which: usize) {
        if self.tasks.is_empty() {
            return;
        }
        let (id, task) = self.tasks.remove(which % self.tasks.len());
        drop(task);
        for queue in &mut self.waiting {
            queue.retain(|(other, _)| *other != id);
        }
    }

    /// Polls until nobody moves, from the one on who is said; then compares with the twin.
    fn settle(&mut self, from: usize) {
        loop {
            let before = self.served.borrow().len();
            let mut awake = 0;
            for step in 0..self.tasks.len() {
                if self.tasks.is_empty() {
                    break;
                }
                let woken = self.wakes.get();
                self.poll((from + step) % self.tasks.len());
                awake += self.wakes.get() - woken;
            }
            if self.served.borrow().len() == before && awake == 0 {
                break;
            }
        }
        for (queue, id) in self.served.borrow_mut().drain(..) {
            let first = self.waiting[queue].remove(0);
            assert_eq!(first.0, id, "BKT-1: service in the order of asking");
        }
        let new_buckets = self.waiting[0].is_empty();
        for queue in &self.waiting {
            if let Some((id, need)) = queue.first() {
                assert!(
                    !self.stock.borrow().suffices(*need, new_buckets),
                    "BKT-3: {id} sleeps although there is {need:?}"
                );
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Need),
    Buckets(usize),
    Reserved(usize),
    Open(u64),
    Bytes(usize),
    /// Somebody who stands in no queue, as the gen table, takes a bucket.
    Lose,
    Leave(usize),
    Poll(usize),
    Drought,
    Settle(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6usize).prop_map(|n| Step::Ask(Need::Metadata(n))),
        6 => (1..30u64).prop_map(|n| Step::Ask(Need::Data(n, Data::Cached))),
        3 => (1..30usize).prop_map(|n| Step::Ask(Need::Fill(n))),
        4 => (1..5usize).prop_map(Step::Buckets),
        2 => (1..3usize).prop_map(Step::Reserved),
        2 => (1..9u64).prop_map(Step::Open),
        2 => (1..20usize).prop_map(Step::Bytes),
        2 => Just(Step::Lose),
        3 => any::<usize>().prop_map(Step::Leave),
        3 => any::<usize>().prop_map(Step::Poll),
        1 => Just(Step::Drought),
        3 => any::<usize>().prop_map(Step::Settle),
    ]
}

proptest! {
    /// T42.
    #[test]
    fn any_history_serves_in_the_order_of_asking_and_loses_no_wake_up(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Ask(need) => world.ask(need),
                Step::Buckets(n) => world.supply(|stock| stock.buckets += n),
                Step::Reserved(n) => world.supply(|stock| stock.reserved += n),
                Step::Open(n) => world.supply(|stock| stock.open_sectors += n),
                Step::Bytes(n) => world.supply(|stock| stock.bytes += n),
                Step::Lose => world.supply(|stock| stock.buckets = stock.buckets.saturating_sub(1)),
                Step::Leave(which) => world.leave(which),
                Step::Poll(which) if !world.tasks.is_empty() => {
                    let at = which % world.tasks.len();
                    world.poll(at);
                }
                Step::Poll(_) => (),
                Step::Drought => world.queues.borrow().tell_drought(),
                Step::Settle(from) => world.settle(from % (world.tasks.len() + 1)),
            }
        }
        world.settle(0);
    }
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Count(std::sync::atomic::AtomicUsize);

impl Wake for Count {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// T42.
#[test]
fn a_release_wakes_only_the_one_it_serves_and_once() {
    let mut queues = Queues::default();
    let waiters: Vec<_> = (0..3).map(|_| queues.enter(Need::Metadata(2))).collect();
    let counts: Vec<_> = (0..3)
        .map(|_| std::sync::Arc::new(Count::default()))
        .collect();
    let mut turns: Vec<_> = waiters.iter().map(|w| Box::pin(w.turn())).collect();
    let mut poll = |at: usize| -> Poll<()> {
        let waker = Waker::from(counts[at].clone());
        turns[at].as_mut().poll(&mut Context::from_waker(&waker))
    };
    (0..3).for_each(|at| assert!(poll(at).is_pending()));
    let woken = || -> Vec<usize> {
        let load =
            |count: &std::sync::Arc<Count>| count.0.load(std::sync::atomic::Ordering::Relaxed);
        counts.iter().map(load).collect()
    };
    let mut stock = Stock {
        buckets: 1,
        ..Stock::default()
    };
    queues.serve(&stock);
    assert_eq!(woken(), [0, 0, 0], "one bucket is too few for the first");
    stock.buckets = 4;
    queues.serve(&stock);
    queues.serve(&stock);
    assert_eq!(
        woken(),
        [1, 0, 0],
        "the second comes once the first has taken"
    );
    assert!(poll(0).is_ready());
    stock.take(Need::Metadata(2), true);
    queues.leave(&waiters[0]);
    queues.serve(&stock);
    assert_eq!(woken(), [1, 1, 0]);
}

#[test]
fn data_takes_no_bucket_while_metadata_waits_but_shares_open_ones() {
    let mut queues = Queues::default();
    let data = queues.enter(Need::Data(8, Data::Cached));
    let metadata = queues.enter(Need::Metadata(3));
    let mut stock = Stock {
        buckets: 2,
        ..Stock::default()
    };
    queues.serve(&stock);
    assert!(!data.is_awake.get() && !metadata.is_awake.get());
    stock.open_sectors = 8;
    queues.serve(&stock);
    assert!(data.is_awake.get() && !metadata.is_awake.get());
    assert_eq!(queues.metadata_wanted(), 3);
    queues.leave(&metadata);
    assert!(queues.new_buckets() && queues.metadata_wanted() == 0);
}

#[test]
fn a_newcomer_does_not_overtake_one_who_waits_for_the_same() {
    let mut queues = Queues::default();
    let first = queues.enter(Need::Data(8, Data::Cached));
    let second = queues.enter(Need::Data(1, Data::Flash));
    assert!(queues.is_next(first.need, Some(&first)));
    assert!(!queues.is_next(second.need, Some(&second)));
    assert!(!queues.is_next(Need::Data(1, Data::Cached), None));
    assert!(queues.is_next(Need::Metadata(1), None), "another queue");
    queues.leave(&first);
    assert!(queues.is_next(second.need, Some(&second)));
}

#[test]
fn the_last_call_wakes_everybody() {
    let mut queues = Queues::default();
    let needs = [
        Need::Metadata(1),
        Need::Data(1, Data::Cached),
        Need::Fill(1),
    ];
    let waiters = needs.map(|need| [queues.enter(need), queues.enter(need)]);
    queues.wake_all();
    assert!(waiters.iter().flatten().all(|waiter| waiter.is_awake.get()));
}
