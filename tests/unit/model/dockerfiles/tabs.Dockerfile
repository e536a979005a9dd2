	FROM	a	AS	b
	 RUN		one
  FROM  b
