//! The real server in a process of its own, and the hand that kills it.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::watch,
    time,
};
use tonic::transport::{Channel, Endpoint};
use verdict::config::{self, Variables};

use super::{content::Source, driver::World, record::Downtime};
use crate::support::PATIENCE;

/// How many connections the senders share.
const CONNECTIONS: usize = 3;

/// The connections of the senders; `None` while there is no server.
pub(crate) type Door = Option<Vec<Channel>>;

/// A directory with the configuration and the log, and a port: what outlives the process.
pub(crate) struct Home {
    directory: TempDir,
    port: u16,
}

impl Home {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let home = Self {
            directory: TempDir::new().expect("a directory"),
            port: free_port(rng),
        };
        let mut config = format!(
            "[server]\ngrpc_listen = \"127.0.0.1:{}\"\nwebhook_listen = \"\"\nops_listen = \"\"\n[log]\npath = \"{}\"\nsegment_bytes = 1048576\n",
            home.port,
            home.path("log").display()
        );
        let root = std::env::current_dir().expect("a current directory");
        for source in Source::ALL {
            let (provider, account) = (source.provider(), source.account());
            let secret = root.join("tests/fixtures").join(provider).join("secret");
            config.push_str(&format!(
                "[[sources]]\nprovider = \"{provider}\"\naccount = \"{account}\"\n\
                 secrets = [{{ id = \"history\", file = \"{}\" }}]\n",
                secret.display()
            ));
        }
        fs::write(home.path("verdict.toml"), config).expect("a file");
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The sources, to sign with their secrets.
    pub(crate) fn sources(&self) -> Vec<verdict::source::Source> {
        let path = self.path("verdict.toml");
        let loaded = config::load(Some(&path), &Variables::new());
        loaded.expect("a good configuration").sources
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What all processes so far have written to standard error.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(self.path("stderr"));
        Command::new(env!("CARGO_BIN_EXE_verdict"))
            .args(["serve", "--config"])
            .arg(self.path("verdict.toml"))
            .env_remove("VERDICT_CONFIG")
            .env(
                "VERDICT__TELEMETRY__LOG_LEVELS",
                "warn,verdict::ingest=error",
            )
            .stderr(Stdio::from(stderr.expect("a file")))
            .kill_on_drop(true)
            .spawn()
            .expect("the binary runs")
    }

    /// Connects as soon as the server takes connections.
    async fn connections(&self, server: &mut Child) -> Vec<Channel> {
        let endpoint = Endpoint::from_shared(self.url()).expect("a URL");
        let mut channels = Vec::new();
        while channels.len() < CONNECTIONS {
            if let Ok(channel) = endpoint.connect().await {
                channels.push(channel);
                continue;
            }
            let ended = server.try_wait().expect("a child");
            assert!(ended.is_none(), "the server ended: {}", self.errors());
            time::sleep(Duration::from_millis(2)).await;
        }
        channels
    }

    async fn serve(&self) -> (Child, Vec<Channel>) {
        let mut server = self.spawn();
        let connections = time::timeout(PATIENCE, self.connections(&mut server)).await;
        let connections =
            connections.unwrap_or_else(|_| panic!("the server does not start: {}", self.errors()));
        (server, connections)
    }
}

/// A port that the system gives to nobody who does not name it, so that it stays ours while the server is down.
fn free_port(rng: &mut Rng) -> u16 {
    loop {
        let port = rng.u16(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whoever starts and kills the server.
pub(crate) struct Keeper {
    home: Arc<Home>,
    door: watch::Sender<Door>,
    server: Child,
    rng: Rng,
}

impl Keeper {
    pub(crate) async fn start(home: Arc<Home>, door: watch::Sender<Door>, rng: Rng) -> Self {
        let (server, connections) = home.serve().await;
        door.send_replace(Some(connections));
        Self {
            home,
            door,
            server,
            rng,
        }
    }

    /// Kills the server this many times while the clients work, at moments that are spread over the whole run.
    pub(crate) async fn kill_often(
        mut self,
        world: Arc<World>,
        kills: u64,
    ) -> (Self, Vec<Downtime>) {
        let mut downtimes = Vec::new();
        let share = world.target / (kills + 1);
        for kill in 0..kills {
            let at = kill * share + share / 4 + self.rng.u64(..=share);
            while world.operations() < at {
                time::sleep(Duration::from_millis(1)).await;
            }
            let pause = Duration::from_micros(self.rng.u64(..5_000));
            time::sleep(pause).await;
            downtimes.push(self.kill(&world).await);
        }
        (self, downtimes)
    }

    /// SIGKILL: no handler runs, nothing is flushed. The successor is sometimes killed while it reads the log.
    async fn kill(&mut self, world: &World) -> Downtime {
        let killed = world.recorder.now();
        self.server.kill().await.expect("it can be killed");
        self.door.send_replace(None);
        while self.rng.u8(..4) == 0 {
            self.server = self.home.spawn();
            time::sleep(Duration::from_millis(self.rng.u64(..100))).await;
            self.server.kill().await.expect("it can be killed");
        }
        let (server, connections) = self.home.serve().await;
        self.server = server;
        self.door.send_replace(Some(connections));
        Downtime {
            killed,
            restarted: world.recorder.now(),
        }
    }
}
