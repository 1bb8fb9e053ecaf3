from fuseunion.api import trio as trio
from fuseunion.api.changes import Changes as Changes
from fuseunion.api.mount import Mount as Mount
from fuseunion.api.mount import Stats as Stats
from fuseunion.api.mount import mount as mount
from fuseunion.api.run import run as run
from fuseunion.errors import ExitCode as ExitCode
from fuseunion.errors import UserError as UserError

__version__: str
