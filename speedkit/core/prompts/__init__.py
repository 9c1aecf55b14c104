"""The templates of all prompts, one file each; :mod:`speedkit.core.prompting` fills them."""
