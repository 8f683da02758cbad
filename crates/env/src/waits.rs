//! Who waits for whom: every wait and every holder that there is, for who looks at a stall.
//!
//! Only with the feature `instrumented`, which simulation sets. Without it [`Place`], [`Wait`] and [`Hold`] are empty and everything
//! here comes to nothing. With it each thread keeps a list; an executor says which task it polls.

#[cfg(feature = "instrumented")]
pub use listed::{Hold, Place, Task, Wait, current, new_task, poll_as, story};
#[cfg(not(feature = "instrumented"))]
pub use nothing::{Hold, Place, Wait};

/// What is waited for or held of something, where that has parts: from here to before there.
pub type Range = (u64, u64);

#[cfg(not(feature = "instrumented"))]
mod nothing {
    use super::Range;

    /// Where something is asked for.
    #[derive(Clone, Copy)]
    pub struct Place;

    impl Place {
        /// Where the caller was called, if all functions between here and there say so.
        #[inline(always)]
        pub fn here() -> Self {
            Place
        }
    }

    /// A wait that is under way.
    pub struct Wait;

    impl Wait {
        /// Somebody begins to wait.
        #[inline(always)]
        pub fn new<T>(_: &'static str, _: &T, _: Option<Range>, _: Place) -> Self {
            Wait
        }

        /// It is over.
        #[inline(always)]
        pub fn end(&self) {}

        /// It is this task that waits, whoever asked for it.
        #[inline(always)]
        pub fn is_polled(&self) {}
    }

    /// Something that is held.
    pub struct Hold;

    impl Hold {
        /// Somebody holds it from now on.
        #[inline(always)]
        pub fn new<T>(_: &T, _: Option<Range>, _: Place) -> Self {
            Hold
        }
    }
}

#[cfg(feature = "instrumented")]
mod listed {
    use super::Range;
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write as _;
    use std::panic::Location;

    /// Number of a task; tasks of one thread have different ones.
    pub type Task = u64;

    thread_local! {
        static NEXT: Cell<Task> = const { Cell::new(1) };
        static CURRENT: Cell<Option<Task>> = const { Cell::new(None) };
        static WAITS: RefCell<List> = const { RefCell::new(List::new()) };
        static HOLDS: RefCell<List> = const { RefCell::new(List::new()) };
    }

    #[derive(Clone, Copy)]
    struct Entry {
        task: Option<Task>,
        kind: &'static str,
        /// The address of what is waited for or held.
        object: usize,
        range: Option<Range>,
        place: &'static Location<'static>,
    }

    /// Entries, and the slots of those that are gone.
    struct List {
        slots: Vec<Option<Entry>>,
        free: Vec<usize>,
    }

    impl List {
        const fn new() -> Self {
            List {
                slots: Vec::new(),
                free: Vec::new(),
            }
        }

        fn add(&mut self, entry: Entry) -> usize {
            if let Some(at) = self.free.pop() {
                self.slots[at] = Some(entry);
                return at;
            }
            self.slots.push(Some(entry));
            self.slots.len() - 1
        }

        fn remove(&mut self, at: usize) {
            if self.slots[at].take().is_some() {
                self.free.push(at);
            }
        }

        fn all(&self) -> Vec<Entry> {
            self.slots.iter().flatten().copied().collect()
        }
    }

    /// A number for a task to come.
    pub fn new_task() -> Task {
        NEXT.with(|next| next.replace(next.get() + 1))
    }

    /// The task that is being polled.
    pub fn current() -> Option<Task> {
        CURRENT.with(Cell::get)
    }

    /// Does something as a task.
    pub fn poll_as<T>(task: Task, poll: impl FnOnce() -> T) -> T {
        /// Sets it back, also when a task panics.
        struct Back(Option<Task>);
        impl Drop for Back {
            fn drop(&mut self) {
                CURRENT.with(|current| current.set(self.0));
            }
        }
        let _back = Back(CURRENT.with(|current| current.replace(Some(task))));
        poll()
    }

    /// Where something is asked for.
    #[derive(Clone, Copy)]
    pub struct Place(&'static Location<'static>);

    impl Place {
        /// Where the caller was called, if all functions between here and there say so.
        #[track_caller]
        pub fn here() -> Self {
            Place(Location::caller())
        }
    }

    /// A wait that is under way.
    pub struct Wait(Cell<Option<usize>>);

    impl Wait {
        /// Somebody begins to wait.
        pub fn new<T>(kind: &'static str, object: &T, range: Option<Range>, place: Place) -> Self {
            let entry = Entry {
                task: current(),
                kind,
                object: std::ptr::from_ref(object).addr(),
                range,
                place: place.0,
            };
            Wait(Cell::new(Some(
                WAITS.with_borrow_mut(|waits| waits.add(entry)),
            )))
        }

        /// It is over.
        pub fn end(&self) {
            if let Some(at) = self.0.take() {
                // A thread that ends takes its list away before some of its tasks.
                let _ = WAITS.try_with(|waits| waits.borrow_mut().remove(at));
            }
        }

        /// It is this task that waits, whoever asked for it.
        pub fn is_polled(&self) {
            let entry = |waits: &mut List| {
                if let Some(entry) = self.0.get().and_then(|at| waits.slots[at].as_mut()) {
                    entry.task = current();
                }
            };
            WAITS.with_borrow_mut(entry);
        }
    }

    impl Drop for Wait {
        fn drop(&mut self) {
            self.end();
        }
    }

    /// Something that is held.
    pub struct Hold(usize);

    impl Hold {
        /// Somebody holds it from now on.
        pub fn new<T>(object: &T, range: Option<Range>, place: Place) -> Self {
            let entry = Entry {
                task: current(),
                kind: "",
                object: std::ptr::from_ref(object).addr(),
                range,
                place: place.0,
            };
            Hold(HOLDS.with_borrow_mut(|holds| holds.add(entry)))
        }
    }

    impl Drop for Hold {
        fn drop(&mut self) {
            let _ = HOLDS.try_with(|holds| holds.borrow_mut().remove(self.0));
        }
    }

    fn is_in_the_way(wait: &Entry, hold: &Entry) -> bool {
        let overlap = match (wait.range, hold.range) {
            (Some(wait), Some(hold)) => wait.0 < hold.1 && hold.0 < wait.1,
            _ => true,
        };
        wait.object == hold.object && overlap
    }

    /// What each of these tasks waits for, and who holds that. `tasks` are numbers and names.
    pub fn story(tasks: &[(Task, String)]) -> String {
        let (waits, holds) = (WAITS.with_borrow(List::all), HOLDS.with_borrow(List::all));
        let name = |task: Option<Task>| match task {
            None => "no task".to_string(),
            Some(task) => match tasks.iter().find(|(number, _)| *number == task) {
                Some((_, name)) => format!("task {task} ({name})"),
                None => format!("task {task} (ended)"),
            },
        };
        let mut text = String::new();
        for (task, _) in tasks {
            let _ = writeln!(text, "{}", name(Some(*task)));
            let mine = waits.iter().filter(|wait| wait.task == Some(*task));
            for (at, wait) in mine.enumerate() {
                // A task that waits for very many things is one of many clients in one.
                if at == 64 {
                    let _ = writeln!(text, "    and for more");
                    break;
                }
                let Entry { kind, place, .. } = wait;
                let range = wait.range.map(|(start, end)| format!(" {start}..{end}"));
                let range = range.unwrap_or_default();
                let _ = writeln!(text, "    waits for {kind}{range} at {place}");
                for hold in holds.iter().filter(|hold| is_in_the_way(wait, hold)) {
                    let range = hold.range.map(|(start, end)| format!(" {start}..{end}"));
                    let (range, who) = (range.unwrap_or_default(), name(hold.task));
                    let _ = writeln!(text, "        held{range} by {who} since {}", hold.place);
                }
            }
        }
        for circle in circles(&waits, &holds) {
            let circle: Vec<String> = circle.iter().map(Task::to_string).collect();
            let _ = writeln!(text, "in a circle: {}", circle.join(" -> "));
        }
        text
    }

    /// Tasks that wait for each other, each beginning and ending with its lowest number.
    fn circles(waits: &[Entry], holds: &[Entry]) -> Vec<Vec<Task>> {
        let mut next: BTreeMap<Task, BTreeSet<Task>> = BTreeMap::new();
        for wait in waits {
            let in_the_way = holds.iter().filter(|hold| is_in_the_way(wait, hold));
            let pairs = in_the_way.filter_map(|hold| wait.task.zip(hold.task));
            pairs.for_each(|(task, holder)| {
                next.entry(task).or_default().insert(holder);
            });
        }
        next.keys()
            .filter_map(|start| circle(*start, &next))
            .collect()
    }

    /// The shortest way from a task back to it over higher numbers.
    fn circle(start: Task, next: &BTreeMap<Task, BTreeSet<Task>>) -> Option<Vec<Task>> {
        let mut ways = std::collections::VecDeque::from([vec![start]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            let last = way.last().expect("it begins somewhere");
            for task in next.get(last).into_iter().flatten() {
                let longer = || way.iter().copied().chain([*task]).collect();
                if *task == start {
                    return Some(longer());
                }
                if *task > start && seen.insert(*task) {
                    ways.push_back(longer());
                }
            }
        }
        None
    }
}

#[cfg(all(test, feature = "instrumented"))]
mod tests {
    use super::*;
    use crate::sync::Semaphore;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_story_names_the_wait_the_holder_and_the_circle() {
        let (one, other) = (Semaphore::new(1), Semaphore::new(1));
        let (first, second) = (new_task(), new_task());
        let mut context = Context::from_waker(Waker::noop());
        let mut both = [(first, &one, &other), (second, &other, &one)].map(|(task, mine, its)| {
            let future = Box::pin(async move {
                let _mine = mine.acquire(1).await;
                std::future::poll_fn(|_| poll_once()).await;
                let _its = its.acquire(1).await;
            });
            (task, future)
        });
        fn poll_once() -> Poll<()> {
            thread_local! { static LEFT: std::cell::Cell<u32> = const { std::cell::Cell::new(2) } }
            let left = LEFT.with(|left| left.replace(left.get().saturating_sub(1)));
            if left > 0 {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        }
        for _ in 0..2 {
            for (task, future) in &mut both {
                let polled = poll_as(*task, || future.as_mut().poll(&mut context));
                assert!(polled.is_pending());
            }
        }
        let tasks = [(first, "one".to_string()), (second, "other".to_string())];
        let text = story(&tasks);
        assert!(
            text.contains("waits for permits at crates/env/src/waits.rs"),
            "{text}"
        );
        assert!(
            text.contains(&format!("held by task {second} (other) since")),
            "{text}"
        );
        assert!(
            text.contains(&format!("held by task {first} (one) since")),
            "{text}"
        );
        let circle = format!("in a circle: {first} -> {second} -> {first}");
        assert!(text.contains(&circle), "{text}");
        drop(both);
        assert!(!story(&tasks).contains("waits"), "nobody waits any more");
    }
}
