//! A private PostgreSQL for tests: own data folder, own port, an unprivileged user, gone with the test process.
//!
//! Its programs are looked for in `WEIR_POSTGRES_BIN`, in `PATH`, in Debian's folders and where `scripts/postgres.py` puts them. A
//! machine without any fails the tests that need one: they are never skipped.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// How to get one, for whoever has none.
const ADVICE: &str = "these tests need PostgreSQL 13 or later: run `python3 scripts/postgres.py`, which fetches one into .weir/postgres, \
                      or install one (Debian: apt-get install postgresql), or set WEIR_POSTGRES_BIN to the folder of initdb and postgres";

/// A start on a busy machine, recovery among it.
const START_MAX: Duration = Duration::from_secs(60);

/// Each line of standard input stops the server at once, as if its machine had lost power but for what the disk has, and starts it again.
/// The end of standard input tells that the tests are over, however they ended: the server is stopped and its folder removed.
const KEEPER: &str = r#"
server=$1; data=$2; port=$3
start() {
    "$server" -D "$data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$data" -c max_connections=300 \
        -c logging_collector=off -c shared_buffers=32MB -c autovacuum=off < /dev/null &
    pid=$!
}
stop() {
    kill -QUIT $pid
    wait $pid
}
start
while read -r line; do stop; start; done
stop
rm -rf "$data"
"#;

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    keeper: Child,
    /// Each time that it has come up, and what it says when it does not.
    ready: Receiver<Result<(), String>>,
    /// Closed first, which ends the server; then the keeper is waited for.
    open: Option<ChildStdin>,
}

impl Postgres {
    /// Makes a data folder and starts a server on it, which trusts everybody on this machine. Its superuser is `postgres`.
    pub fn start() -> Self {
        let programs = programs().unwrap_or_else(|| panic!("{ADVICE}"));
        let mut said = String::new();
        // Somebody else may take the free port before the server does; the next one is as good.
        for _ in 0..5 {
            match Postgres::attempt(&programs) {
                Ok(server) => return server,
                Err(why) => said = why,
            }
        }
        panic!("PostgreSQL does not start ({}): {said}", programs.display());
    }

    /// The error is what the server said last.
    fn attempt(programs: &Path) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("weir-postgres-").tempdir().expect("a temporary folder");
        let data = folder.path().to_owned();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&data, Some(uid), Some(gid)).expect("gives the folder away");
        }
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("makes the folder private");
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(&data).env("LC_ALL", "C").env_remove("PGDATA").process_group(0);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };

        let mut initdb = command(&programs.join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
        let made = initdb.arg(&data).output().unwrap_or_else(|e| panic!("initdb does not start ({e}): {ADVICE}"));
        assert!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));

        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("its number").port();
        drop(free);
        let mut keeper = command(Path::new("sh"));
        keeper.arg("-c").arg(KEEPER).arg("sh").arg(programs.join("postgres")).arg(&data).arg(port.to_string());
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut keeper = keeper.expect("sh starts");
        // From here on the keeper removes it.
        let _ = folder.keep();
        let open = keeper.stdin.take();
        let said = BufReader::new(keeper.stderr.take().expect("its words")).lines();
        let (tell, ready) = mpsc::channel();
        // Read to the end: the server would stop on a full pipe.
        thread::spawn(move || {
            for line in said.map_while(Result::ok) {
                if line.contains("ready to accept connections") {
                    let _ = tell.send(Ok(()));
                } else if line.contains("FATAL") || line.contains("PANIC") {
                    // What clients are told while it starts again is among these, and nobody listens then.
                    let _ = tell.send(Err(line));
                }
            }
        });
        let server = Postgres { port, keeper, ready, open };
        server.wait().map(|()| server)
    }

    /// Waits until it has come up.
    fn wait(&self) -> Result<(), String> {
        self.ready.recv_timeout(START_MAX).unwrap_or_else(|_| Err(format!("nothing for {START_MAX:?}")))
    }

    /// Stops it at once, without its finishing anything, and starts it again on what the disk has.
    #[allow(dead_code, reason = "not every suite that borrows this file needs it")]
    pub fn crash(&mut self) {
        let open = self.open.as_mut().expect("it is open until it is dropped");
        open.write_all(b"again\n").expect("the keeper lives");
        loop {
            match self.wait() {
                Ok(()) => return,
                // What it told clients that it sent away.
                Err(said) if said.contains("FATAL") => {}
                Err(said) => panic!("it does not come up again: {said}"),
            }
        }
    }

    /// Where `user` logs in to `database`.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.open.take());
        let _ = self.keeper.wait();
    }
}

/// The folder of `initdb` and `postgres`.
fn programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("WEIR_POSTGRES_BIN").filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        return Some(folder.canonicalize().unwrap_or(folder));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut debian: Vec<(u32, PathBuf)> = entries("/usr/lib/postgresql")
        .filter_map(|folder| Some((folder.file_name()?.to_str()?.parse().ok()?, folder.join("bin"))))
        .collect();
    debian.sort();
    folders.extend(debian.into_iter().rev().map(|(_, folder)| folder));
    // As scripts/postgres.py leaves it.
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.weir/postgres/bin"));
    let complete = |folder: &PathBuf| ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file());
    folders.into_iter().find(complete)?.canonicalize().ok()
}

fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// PostgreSQL refuses to run as root: whom it runs as there. None where we are not root.
fn unprivileged() -> Option<(u32, u32)> {
    let me = fs::metadata("/proc/self").map(|own| own.uid()).unwrap_or(1);
    if me != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    // The programs ask for the name of their user, so a number alone will not do.
    Some(find("postgres").or_else(|| find("nobody")).expect("/etc/passwd has a user `postgres` or `nobody`"))
}
