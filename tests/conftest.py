"""What every test shares."""

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
    """Networks this small are faster on one thread, and many times faster where other programs hold the cores."""
    torch.set_num_threads(1)


def serve(pipe):
    """What a client process does: run the functions that come, until the test process is gone."""
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
    """A process of its own, which runs functions of a test module as a user of the Hub's libraries would.

    Of the HF_... and proxy variables it has those of `environment` only, and has them before it imports anything.
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
        """End the process, even in the midst of something."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def clients(hub, temporary):
    """What the fixtures `client` and `shared_client` are; the processes end with it."""
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
    """A Hub of the test's own, without users or repos; it takes milliseconds. See `HubServer`."""
    with serving(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def client(hub, tmp_path_factory):
    """A factory of client processes: `client(token=None, home=None, offline=False, endpoint=None, **environment)`.

    `client(token).run(function, *args, **kwargs)` runs a module-level function of the test module in the process,
    which talks to `hub` unless given another endpoint, caches in a new empty HF_HOME unless given one (`Client.home`)
    and is anonymous without a token. To start one costs seconds, for its imports, so let one run several functions.

    A module whose tests can do with one Hub asks for `shared_hub` and `shared_client` instead, which last as long as
    the module does: start the processes in module-scoped fixtures of its own, and give each test its own repo ids.
    """
    with clients(hub, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory):
    """As `hub`, for all tests of a module."""
    with serving(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def shared_client(shared_hub, tmp_path_factory):
    """As `client`, for all tests of a module; its processes talk to `shared_hub`."""
    with clients(shared_hub, tmp_path_factory) as start:
        yield start


@pytest.fixture
def float64():
    """What is made in a test is made in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
