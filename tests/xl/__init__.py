"""The real xl at both ends of a migration, on a machine without a hypervisor.

``fetch`` unpacks Debian's xl, ``build`` compiles stubs of the three toolstack
libraries that it links, ``hosts`` runs it against the books of a stub host and
``stream`` makes and parses migration streams.
"""
