"""Features that the core never imports: it finds them by entry points, as other packages' features.

A plugin imports public modules of the core, and no other plugin. Without its folder the rest works.
`__commands__` of a plugin has the group and the line of each command in the help.
"""

__all__ = ()
