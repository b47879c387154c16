"""Give a generator a teacher that was trained on the real data."""

from hf_gdd.classifiers.teachers import Teachers
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.generators.base import Generator
from hf_gdd.generators.teacher import Teacher
from hf_gdd.training.config import LabelingConfig
from hf_gdd.training.distributed import Processes


def attach_teacher(generator: Generator, config: LabelingConfig, data: ImageTensors, processes: Processes) -> None:
    """Train a teacher, or take it from the cache, and give it to a generator.

    Args:
        generator: its images are labeled from then on.
        config: names the network; None for none.
        data: real training images.
        processes: of the run; one of them trains.

    Raises:
        NonFiniteLossError: the training diverged.

    """
    if config.teacher_network is None:
        return
    recipe = config.teacher_recipe
    transform = Normalize(data.mean, data.std)
    teachers = Teachers(config.teacher_network, data, transform, recipe, config.teacher_cache)
    if processes.is_main:
        teachers.prepare([0])
    processes.wait()
    generator.teacher = Teacher.from_network(config.teacher_network, teachers[0], data, training=recipe.identity())
