FROM a
RUN <<-EOF
	FROM evil:1
	EOF
RUN <<-'E O F' cat
	# no comment
		E O F
USER root
