"""Shared fixtures: one torch thread, a Hub for tests, and client processes that talk to it."""

import contextlib
import multiprocessing
import os
import pickle
import traceback

import pytest
import torch
from hub_server import HubServer

TIMEOUT = 120  # seconds for one call in a client process


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Use one thread: small networks are faster on it, above all where other programs use the cores."""
    torch.set_num_threads(1)


def serve(pipe):
    """Run in a client process the functions that arrive, until the test process is gone."""
    while True:
        try:
            function, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            answer = pickle.dumps((function(*arguments, **options), None, None))
        except BaseException as error:
            report = (str(error), traceback.format_exc())
            answer = pickle.dumps((type(error), *report))
            with contextlib.suppress(Exception):  # not every exception survives pickling; its type and text do
                whole = pickle.dumps((error, *report))
                if str(pickle.loads(whole)[0]) == str(error):
                    answer = whole
        pipe.send_bytes(answer)


class Client:
    """A process that runs functions of a test module as a user of the Hub's libraries would.

    It has the HF_... and proxy variables of `environment` only, and has them before it imports anything.
    """

    def __init__(self, environment):
        self.home = environment["HF_HOME"]
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,))
        with pytest.MonkeyPatch.context() as patch:  # a process starts with the environment of its parent
            for name in list(os.environ):
                if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
                    patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            self.process.start()
        theirs.close()

    def run(self, function, *arguments, **options):
        """Run a module-level function in the process: its value, or its exception, comes back."""
        self.pipe.send((function, arguments, options))
        try:
            if not self.pipe.poll(TIMEOUT):
                raise TimeoutError(f"{function.__name__} took more than {TIMEOUT} s")
            value, text, trace = self.pipe.recv()
        except (EOFError, TimeoutError) as error:
            self.close()
            raise RuntimeError(f"the client is gone: {error}, exit code {self.process.exitcode}") from error
        if trace is None:
            return value
        if isinstance(value, type):
            value = value.__new__(value)
            value.args = (text,)
        raise value from RuntimeError(f"in the client process\n{trace}")

    def close(self):
        """Kill the process, whatever it is doing."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def clients(hub, temporary):
    """Yield the factory of the fixtures `client` and `shared_client`; end its processes afterwards."""
    started = []

    def start(token=None, home=None, offline=False, endpoint=None, **environment):
        names = ["HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"]
        names += ["TQDM_DISABLE", "OMP_NUM_THREADS", *(["HF_HUB_OFFLINE"] if offline else [])]
        environment = dict.fromkeys(names, "1") | ({"HF_TOKEN": token} if token else {}) | environment
        environment["HF_ENDPOINT"] = endpoint or hub.endpoint
        environment["HF_HOME"] = str(home or temporary.mktemp("hf_home"))
        started.append(Client(environment))
        return started[-1]

    try:
        yield start
    finally:
        for client in started:
            client.close()


@contextlib.contextmanager
def serving(root):
    with HubServer(root) as server:
        yield server
    assert not server.errors, "\n".join(server.errors)


@pytest.fixture
def hub(tmp_path_factory):
    """A new Hub for one test, without users or repos; it starts in milliseconds. See `HubServer`."""
    with serving(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def client(hub, tmp_path_factory):
    """A factory of client processes: `client(token=None, home=None, offline=False, endpoint=None, **environment)`.

    `client(token).run(function, *args, **kwargs)` runs a module-level function of the test module in the process,
    which talks to `hub` unless given another endpoint, caches in a new empty HF_HOME unless given one (`Client.home`)
    and is anonymous without a token. A process takes seconds to start, so let it run several functions.

    Modules whose tests can share a Hub use `shared_hub` and `shared_client`, which last for the module: start the
    processes in module-scoped fixtures, and give each test its own repo ids.
    """
    with clients(hub, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory):
    """As `hub`, but one for all tests of a module."""
    with serving(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def shared_client(shared_hub, tmp_path_factory):
    """As `client`, for all tests of a module; its processes talk to `shared_hub`."""
    with clients(shared_hub, tmp_path_factory) as start:
        yield start


@pytest.fixture
def float64():
    """Make float64 the default dtype of a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
