FROM a
COPY <<"EOF" /script.py
from os import path
\
# escape
EOF
RUN <<'END'
$HOME "
 'END'
END
