"""The version, where every module can read it: the package itself names all the verbs."""

VERSION = "0.1.0"
