from .activations import calibrate as calibrate
from .gptq import PostTrained as PostTrained
from .gptq import post_training as post_training
from .reconstruct import LearnedRounding as LearnedRounding
from .reconstruct import ModuleToModule as ModuleToModule
from .reconstruct import reconstruct as reconstruct
