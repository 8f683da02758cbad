//! The futures of a world, by index.

use crate::wake::TASKS_MAX;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;

type Task = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct Table {
    tasks: Vec<Option<Task>>,
    free: Vec<u32>,
}

/// A slab of tasks. Index 0 is never handed out: it stands for the future `block_on` runs.
#[derive(Default)]
pub(crate) struct Tasks(RefCell<Table>);

impl Tasks {
    /// Keeps a task; the index names it until [`Tasks::retire`].
    pub(crate) fn insert(&self, task: Task) -> u32 {
        let mut table = self.0.borrow_mut();
        if let Some(index) = table.free.pop() {
            table.tasks[index as usize] = Some(task);
            return index;
        }
        if table.tasks.is_empty() {
            table.tasks.push(None);
        }
        let index = table.tasks.len();
        assert!(index < TASKS_MAX, "too many tasks");
        table.tasks.push(Some(task));
        index as u32
    }

    /// Takes a task out to poll it; `None` if it has ended.
    pub(crate) fn take(&self, index: u32) -> Option<Task> {
        self.0.borrow_mut().tasks.get_mut(index as usize)?.take()
    }

    /// Puts a task back that is not done.
    pub(crate) fn put_back(&self, index: u32, task: Task) {
        self.0.borrow_mut().tasks[index as usize] = Some(task);
    }

    /// Gives the index of a finished task free.
    pub(crate) fn retire(&self, index: u32) {
        self.0.borrow_mut().free.push(index);
    }

    /// Drops all tasks, also those that dropping others starts.
    pub(crate) fn clear(&self) {
        loop {
            let tasks = {
                let mut table = self.0.borrow_mut();
                table.free.clear();
                std::mem::take(&mut table.tasks)
            };
            if tasks.is_empty() {
                return;
            }
            drop(tasks);
        }
    }
}
