"""The targets, a module each: TARGET and the class of its cases, and the property in the docstring."""
