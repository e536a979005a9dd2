FROM a
COPY <<one <<two /dest/
RUN 1
one
RUN 2
EOF
two
RUN cat <<A <<-B 3<<C
A
	B
C
ENV x=y
