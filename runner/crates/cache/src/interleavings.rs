//! Uploads, pins and garbage collection at the same time, in random order, over a store in memory
//! with a clock of its own. Every request takes a random time, and time passes only while all
//! actors wait, so each seed is one interleaving that repeats.
//!
//! What must hold: a path whose pin was set successfully is complete until the end, and no narinfo
//! ever names a NAR or a path that is absent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::cache::{CACHE_INFO, Clock};
use crate::gc::{self, Options};
use crate::inventory::tests::hash;
use crate::roots::Roots;
use crate::{Cache, copy, pins};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hookrun_capability::object_store::Bucket;
use hookrun_nix::narinfo::Narinfo;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// The number of interleavings, unless the environment says more.
const SEEDS: u64 = 8;
/// The variable with another number: 200 take a few minutes.
const SEEDS_VARIABLE: &str = "HOOKRUN_INTERLEAVINGS";
/// The number of paths.
const PATHS: usize = 10;
/// The longest time of a request in seconds.
const SLOWEST: u64 = 6;
/// The grace period in seconds: longer than an upload.
const GRACE: u64 = 4000;
/// The time at the beginning, in seconds since 1970.
const START: u64 = 1_800_000_000;
/// How long the actors act, in seconds.
const END: u64 = 60_000;

/// A source of random numbers that repeats (splitmix64).
#[derive(Debug, Clone)]
struct Dice(Arc<Mutex<u64>>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// Returns a number below `sides`.
    fn roll(&self, sides: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// Time that passes only while all actors wait.
#[derive(Default)]
struct World {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    milliseconds: u64,
    number: u64,
    /// By time and number.
    sleepers: BTreeMap<(u64, u64), Waker>,
}

/// Ends at a time.
struct Nap {
    world: Arc<World>,
    until: u64,
    number: Option<u64>,
}

impl Future for Nap {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = Arc::clone(&self.world);
        let mut state = world.state.lock().unwrap();
        if let Some(number) = self.number.take() {
            state.sleepers.remove(&(self.until, number));
        }
        if state.milliseconds >= self.until {
            return Poll::Ready(());
        }
        state.number += 1;
        let number = state.number;
        state.sleepers.insert((self.until, number), context.waker().clone());
        self.number = Some(number);
        Poll::Pending
    }
}

impl World {
    fn nap(self: &Arc<Self>, milliseconds: u64) -> Nap {
        let until = self.state.lock().unwrap().milliseconds + milliseconds;
        Nap { world: Arc::clone(self), until, number: None }
    }

    fn seconds(&self) -> u64 {
        self.state.lock().unwrap().milliseconds / 1000
    }

    /// Runs a future to its end.
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            let mut state = self.state.lock().unwrap();
            let Some(((time, _), waker)) = state.sleepers.pop_first() else {
                panic!("all actors wait for ever");
            };
            state.milliseconds = state.milliseconds.max(time);
            drop(state);
            waker.wake();
        }
    }
}

impl Clock for Slow {
    fn now(&self) -> u64 {
        START + self.world.seconds()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.world.nap(u64::try_from(time.as_millis()).unwrap()))
    }
}

/// A store whose requests take time, and whose times are those of the test.
#[derive(Clone)]
struct Slow {
    inner: Arc<InMemory>,
    written: Arc<Mutex<HashMap<Path, u64>>>,
    dice: Dice,
    world: Arc<World>,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slow")
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slow")
    }
}

impl Slow {
    fn new(dice: &Dice, world: &Arc<World>) -> Self {
        let (dice, world) = (dice.clone(), Arc::clone(world));
        Self { inner: Arc::default(), written: Arc::default(), dice, world }
    }

    /// Half of the time passes before the request has its effect, half after.
    async fn pass(&self) {
        self.world.nap(self.dice.roll(SLOWEST * 500)).await;
    }

    fn timed(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let written = self.written.lock().unwrap().get(&meta.location).copied();
        let seconds = i64::try_from(written.unwrap_or(START)).unwrap();
        meta.last_modified = chrono::DateTime::from_timestamp(seconds, 0).unwrap();
        meta
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.pass().await;
        let stored = self.inner.put_opts(location, payload, options).await;
        if stored.is_ok() {
            self.written.lock().unwrap().insert(location.clone(), self.now());
        }
        self.pass().await;
        stored
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass().await;
        let found = self.inner.get_opts(location, options).await;
        let found = found.map(|mut found| {
            found.meta = self.timed(found.meta);
            found
        });
        self.pass().await;
        found
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .then(move |location| {
                let store = store.clone();
                async move {
                    let location = location?;
                    store.world.nap(store.dice.roll(1000)).await;
                    store.inner.delete(&location).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        // Pages are taken at different times.
        let store = self.clone();
        let listed = self.inner.list(prefix);
        listed
            .then(move |meta| {
                let store = store.clone();
                async move {
                    store.world.nap(store.dice.roll(200)).await;
                    meta.map(|meta| store.timed(meta))
                }
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Returns the store path with this number.
fn path(number: usize) -> String {
    format!("/nix/store/{}-p{number}", hash(number).as_str())
}

/// Fills a cache with paths that refer to some of those before them.
async fn fill(store: &InMemory, dice: &Dice) -> Vec<HashSet<usize>> {
    let put = async |key: String, text: String| {
        store.put(&Path::from(key), PutPayload::from(text.into_bytes())).await.unwrap();
    };
    put(CACHE_INFO.to_owned(), "StoreDir: /nix/store\n".to_owned()).await;
    let mut closures: Vec<HashSet<usize>> = Vec::new();
    for number in 0..PATHS {
        let references: Vec<usize> = (0..number).filter(|_| dice.roll(3) == 0).collect();
        let mut closure = HashSet::from([number]);
        for reference in &references {
            closure.extend(&closures[*reference]);
        }
        closures.push(closure);
        let names: Vec<String> =
            references.iter().map(|number| path(*number).replace("/nix/store/", "")).collect();
        let text = format!(
            "StorePath: {}\nURL: nar/{number}.nar\nCompression: none\nNarHash: sha256:{}\n\
             NarSize: 5\nReferences: {}\n",
            path(number),
            "0".repeat(52),
            names.join(" ")
        );
        put(format!("{}.narinfo", hash(number).as_str()), text).await;
        put(format!("nar/{number}.nar"), format!("nar {number}")).await;
    }
    closures
}

/// Returns what is wrong in the store: narinfos without their NAR or a reference.
async fn broken(store: &InMemory) -> Vec<String> {
    let keys: HashSet<String> =
        store.list(None).map(|meta| meta.unwrap().location.to_string()).collect().await;
    let mut broken = Vec::new();
    for key in keys.iter().filter(|key| key.ends_with(".narinfo")) {
        let bytes = store.get(&Path::from(key.as_str())).await.unwrap().bytes().await.unwrap();
        let narinfo = Narinfo::parse("/nix/store", &bytes).unwrap();
        let needs = narinfo.references().map(|name| hookrun_nix::narinfo::key_of(&name));
        let needs = needs.chain([narinfo.nar_key().unwrap().to_owned()]);
        broken
            .extend(needs.filter(|need| !keys.contains(need)).map(|need| format!("{key}: {need}")));
    }
    broken
}

/// Runs one interleaving; returns the number of removed objects and of pins that were set.
async fn interleave(seed: u64, world: &Arc<World>) -> (u64, usize) {
    let dice = Dice::new(seed);
    let full = Arc::new(InMemory::new());
    let closures = fill(&full, &dice).await;
    let source = Cache::open(Bucket::over("source", full)).await.unwrap();
    let slow = Slow::new(&dice, world);
    let open = async || {
        Cache::open_or_create(Bucket::over("target", Arc::new(slow.clone())), &source)
            .await
            .unwrap()
            .with_clock(Arc::new(slow.clone()))
    };
    let is_over = || world.seconds() > END;
    let rest = async |most: u64| world.nap(dice.roll(most * 1000)).await;
    let pinned = Mutex::new(HashMap::new());
    let removed = Mutex::new(0);

    let upload = async || {
        let target = open().await;
        while !is_over() {
            let wanted = path(usize::try_from(dice.roll(PATHS as u64)).unwrap());
            let report = copy::copy(&source, &target, &[wanted], 4, &mut |_, _| ()).await.unwrap();
            // A path that is removed meanwhile is reported, and uploaded by the next attempt.
            assert!(report.failed.iter().all(|(_, why)| why.contains("refers to")), "{report:?}");
            rest(4000).await;
        }
    };
    let pin = async |name: &str| {
        let target = open().await;
        while !is_over() {
            rest(6000).await;
            let number = usize::try_from(dice.roll(PATHS as u64)).unwrap();
            pinned.lock().unwrap().remove(name);
            if pins::set(&target, name, vec![path(number)], |_| ()).await.is_ok() {
                pinned.lock().unwrap().insert(name.to_owned(), number);
            }
        }
    };
    let collect = async || {
        let target = open().await;
        let options = Options { grace: GRACE, keep_newer_than: None, parallel: 4 };
        while !is_over() {
            rest(3000).await;
            let roots = Roots::default();
            let step = &mut |_| ();
            let survey = gc::survey(&target, &roots, &options, None, step).await.unwrap();
            let settle = slow.sleep(gc::SETTLE);
            match gc::run(&target, &roots, &options, survey, settle, step).await {
                Ok(report) => *removed.lock().unwrap() += report.removed.count,
                // Two runs may change the list in turn.
                Err(crate::CacheError::Contended { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let observe = async || {
        while !is_over() {
            world.nap(7000).await;
            assert_eq!(broken(&slow.inner).await, Vec::<String>::new(), "seed {seed}");
            let pinned: Vec<usize> = pinned.lock().unwrap().values().copied().collect();
            for needed in pinned.iter().flat_map(|number| &closures[*number]) {
                let key = Path::from(format!("{}.narinfo", hash(*needed).as_str()));
                assert!(slow.inner.head(&key).await.is_ok(), "seed {seed}: p{needed} is lost");
            }
        }
    };
    tokio::join!(
        upload(),
        upload(),
        upload(),
        pin("one"),
        pin("two"),
        collect(),
        collect(),
        observe()
    );
    let removed = *removed.lock().unwrap();
    let pinned = pinned.lock().unwrap().len();
    (removed, pinned)
}

#[test]
fn nothing_that_a_pin_reaches_is_lost_in_any_interleaving() {
    let (mut removed, mut pinned) = (0, 0);
    let seeds = std::env::var(SEEDS_VARIABLE).map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let world = Arc::default();
        let (seeds_removed, seeds_pinned) = World::run(&world, interleave(seed, &world));
        removed += seeds_removed;
        pinned += seeds_pinned;
    }
    assert!(removed > 10 * seeds && pinned > 5, "the test did not test: {removed}, {pinned}");
}
