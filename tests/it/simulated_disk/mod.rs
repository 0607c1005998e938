//! A disk in memory that loses power, runs full and fails when a test says so. What it promises is what Linux promises
//! with its usual file systems, and no more:
//!
//! - What was written is read back at once, but outlives a power cut only after `sync`. Until then any sectors of it may
//!   have reached the disk, in any order, and the length of the file may be ahead of its bytes.
//! - A name is durable after `sync_directory`, never by `sync` of its file. Until then the changes of a directory reach
//!   the disk in their order. A rename happens as a whole or not at all.
//! - A `sync` that failed leaves in doubt what it was about: it can be read, but may be gone after a power cut, even when
//!   a later `sync` succeeds. Only writing it again and a good `sync` help.
//!
//! Every directory exists. A rename stays within its directory.

mod directory;
mod fault;
mod inode;
mod journal;
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fastrand::Rng;
use verdict::log::disk::{Disk, DiskFile};

pub(crate) use fault::{EIO, ENOSPC, EROFS, Fault};

use directory::{Directory, InodeId};
use fault::{ENOENT, EXDEV, Faults};
use inode::{Inode, Operation};

/// What `free_bytes` answers until a test says otherwise.
const PLENTY: u64 = 1 << 40;

/// A handle on the disk. Its clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

impl SimulatedDisk {
    /// An empty disk. The seed decides how short its short writes are.
    pub(crate) fn new(seed: u64) -> Self {
        State::new(Rng::with_seed(seed)).into()
    }

    /// The disk after a power cut now. What was pending reached it, did not, or did in part, as the generator says. It
    /// shares nothing with this one: open files stay on this one.
    pub(crate) fn cut(&self, rng: &mut Rng) -> Self {
        self.state().cut(rng).into()
    }

    /// The disk after the death of the process only: everything can still be read, and what was pending still is.
    pub(crate) fn kill(&self) -> Self {
        let state = self.state();
        State {
            directories: state.directories.clone(),
            inodes: state.inodes.clone(),
            next_inode: state.next_inode,
            ..State::new(state.rng.clone())
        }
        .into()
    }

    /// Lets writing fail: `write_at`, `set_size` and `create`, and with [`EROFS`] also `rename` and `remove`.
    pub(crate) fn fail_writes(&self, fault: Option<Fault>) {
        self.state().faults.writes = fault;
    }

    /// Lets `sync` and `sync_directory` fail, which leaves what they were about in doubt.
    pub(crate) fn fail_syncs(&self, fault: Option<Fault>) {
        self.state().faults.syncs = fault;
    }

    /// Lets `read_at` fail.
    pub(crate) fn fail_reads(&self, fault: Option<Fault>) {
        self.state().faults.reads = fault;
    }

    /// Sets what `free_bytes` answers for a directory that is on a volume of its own.
    pub(crate) fn set_free_bytes_of(&self, directory: &Path, free_bytes: u64) {
        self.state().volume = Some((directory.to_owned(), free_bytes));
    }

    /// Sets what `free_bytes` answers. Nothing else follows from it: [`fail_writes`](Self::fail_writes) fills the disk.
    pub(crate) fn set_free_bytes(&self, free_bytes: u64) {
        self.state().free_bytes = free_bytes;
    }

    /// How many operations have tried to change this disk so far, syncs included. A test can cut the power after each.
    pub(crate) fn crash_points(&self) -> u64 {
        self.state().crash_points
    }

    /// Lets every operation fail once [`crash_points`](Self::crash_points) has come to this number, counted from when
    /// the disk was made.
    pub(crate) fn power_off_after(&self, crash_points: u64) {
        self.state().power_limit = Some(crash_points);
    }

    /// Damages a file: one bit of it, counted from the lowest of its byte. What was pending of it becomes durable.
    pub(crate) fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) {
        self.damage(path.as_ref(), |content| {
            content[offset as usize] ^= 1 << bit;
        });
    }

    /// Damages a file: cuts it, or fills it up with zeros. What was pending of it becomes durable.
    pub(crate) fn truncate(&self, path: impl AsRef<Path>, size: u64) {
        self.damage(path.as_ref(), |content| content.resize(size as usize, 0));
    }

    /// The paths of all files, sorted.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let state = self.state();
        let directories = state.directories.iter();
        directories
            .flat_map(|(path, directory)| directory.names().map(|name| path.join(name)))
            .collect()
    }

    /// What can be read from a file now. Faults and lost power do not matter here.
    pub(crate) fn contents(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let mut state = self.state();
        let inode = state.find(path.as_ref()).expect("the file is there");
        state.inode(inode).contents().to_vec()
    }

    fn damage(&self, path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.find(path).expect("the file is there");
        state.inode(inode).damage(damage);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn file(&self, inode: InodeId) -> Box<dyn DiskFile> {
        let state = Arc::clone(&self.state);
        Box::new(SimulatedFile { state, inode })
    }
}

impl From<State> for SimulatedDisk {
    fn from(state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        Self { state }
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SimulatedDisk")
            .finish_non_exhaustive()
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.check_power()?;
        Ok(self.file(state.find(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.begin_change()?;
        state.faults.strike_write()?;
        Ok(self.file(state.create(path)?))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.check_power()?;
        Ok(state.directory(directory).names().cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_change()?;
        state.faults.strike_rename()?;
        state.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_change()?;
        state.faults.strike_rename()?;
        let inode = state.find(path)?;
        let (parent, _) = split(path)?;
        state.directory(parent).place(inode, None);
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_change()?;
        let struck = state.faults.strike_sync();
        let directory = state.directory(directory);
        match struck {
            Ok(()) => directory.sync(),
            Err(_) => directory.doubt(),
        }
        struck
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        let state = self.state();
        state.check_power()?;
        match &state.volume {
            Some((volume, free_bytes)) if volume == directory => Ok(*free_bytes),
            _ => Ok(state.free_bytes),
        }
    }
}

/// An open file. It stays on its inode, whatever happens to the name.
struct SimulatedFile {
    state: Arc<Mutex<State>>,
    inode: InodeId,
}

impl DiskFile for SimulatedFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = lock(&self.state);
        state.check_power()?;
        Ok(state.inode(self.inode).contents().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = lock(&self.state);
        state.check_power()?;
        state.faults.strike_read()?;
        let contents = state.inode(self.inode).contents();
        let rest = contents.get(offset as usize..).unwrap_or_default();
        let read = buffer.len().min(rest.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.begin_change()?;
        let struck = state.faults.strike_write();
        let written = match &struck {
            Ok(()) => bytes,
            Err(fault) if fault.short => &bytes[..state.rng.usize(..=bytes.len())],
            Err(_) => &[],
        };
        if !written.is_empty() {
            let bytes = written.to_vec();
            let write = Operation::Write { offset, bytes };
            state.inode(self.inode).change(write);
        }
        struck.map_err(io::Error::from)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.begin_change()?;
        state.faults.strike_write()?;
        state.inode(self.inode).change(Operation::SetSize(size));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.begin_change()?;
        let struck = state.faults.strike_sync();
        let inode = state.inode(self.inode);
        match struck {
            Ok(()) => inode.sync(),
            Err(_) => inode.doubt(),
        }
        struck
    }
}

/// The disk behind all handles.
struct State {
    directories: BTreeMap<PathBuf, Directory>,
    inodes: BTreeMap<InodeId, Inode>,
    next_inode: InodeId,
    faults: Faults,
    free_bytes: u64,
    volume: Option<(PathBuf, u64)>,
    crash_points: u64,
    power_limit: Option<u64>,
    rng: Rng,
}

impl State {
    fn new(rng: Rng) -> Self {
        Self {
            directories: BTreeMap::new(),
            inodes: BTreeMap::new(),
            next_inode: 0,
            faults: Faults::default(),
            free_bytes: PLENTY,
            volume: None,
            crash_points: 0,
            power_limit: None,
            rng,
        }
    }

    /// Lets each directory and each file reach the disk as far as chance says. Files without a name are gone.
    fn cut(&self, rng: &mut Rng) -> Self {
        let mut cut = Self::new(rng.fork());
        cut.next_inode = self.next_inode;
        for (path, directory) in &self.directories {
            let landed = directory.land(rng);
            for inode in landed.inodes() {
                cut.inodes.insert(inode, self.inodes[&inode].land(rng));
            }
            cut.directories.insert(path.clone(), landed);
        }
        cut
    }

    fn check_power(&self) -> io::Result<()> {
        match self.power_limit {
            Some(limit) if self.crash_points >= limit => Err(io::Error::other("power is off")),
            _ => Ok(()),
        }
    }

    fn begin_change(&mut self) -> io::Result<()> {
        self.check_power()?;
        self.crash_points += 1;
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> &mut Directory {
        self.directories.entry(path.to_owned()).or_default()
    }

    fn inode(&mut self, inode: InodeId) -> &mut Inode {
        let inode = self.inodes.get_mut(&inode);
        inode.expect("inodes stay as long as their disk")
    }

    fn find(&mut self, path: &Path) -> io::Result<InodeId> {
        let (parent, name) = split(path)?;
        let found = self.directory(parent).find(name);
        found.ok_or_else(|| io::Error::from_raw_os_error(ENOENT))
    }

    /// Makes a file, or makes the one that has the name empty, as `O_TRUNC` does: the same inode, so a power cut can
    /// bring its content back.
    fn create(&mut self, path: &Path) -> io::Result<InodeId> {
        if let Ok(inode) = self.find(path) {
            self.inode(inode).change(Operation::SetSize(0));
            return Ok(inode);
        }
        let (parent, name) = split(path)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.directory(parent).place(inode, Some(name));
        Ok(inode)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        let (parent, name) = split(to)?;
        if from.parent() != Some(parent) {
            return Err(io::Error::from_raw_os_error(EXDEV));
        }
        self.directory(parent).place(inode, Some(name));
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A test that fails with the lock held should fail with its own words.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directory of a path, and the name in it.
fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent()
        .zip(name)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
